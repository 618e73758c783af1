"""Weights: found on this machine, checked, and read without running what is in the file.

A pickle can run code. ``torchvision``'s own loader unpickles whatever lies in the hub cache under the right name, and
does not check its hash there; this one reads tensors only and checks. A run downloads nothing; `download_file` is for
``--fetch-weights``, beforehand.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import logging
import os
import re
import shlex
import urllib.error
import urllib.request
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dnnbrain_app.errors import BadDataError, CannotWriteError, MissingInputError, UsageError
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.networks.sources import list_folders

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_MEGA = 1024**2
_TIMEOUT = 60  # seconds without a byte
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_RESTRICTED = re.compile(r"\bnc\b|non-?commercial|dinov3|amlr|seer|sapiens|/SWAG/|research", re.IGNORECASE)
_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_OTHER_FORMATS = {
    ".npy": "the original's .npy files of models are pickles, which can run code, and hold no network; fit again",
    ".onnx": "a graph with its own weights; name it as the network: onnx:FILE",
    ".keras": "a Keras model; name it as the network: keras:FILE",
    ".h5": "a Keras model or another HDF5 file; a model can be named as the network: keras:FILE",
}


def find_weights(name: str, url: str, options: NetworkOptions) -> Path:
    """Find the file of weights: the user's, or else the published one in the user's folder or in torch's cache.

    Parameters
    ----------
    name : str
        The network, for the message.
    url : str
        Where the publisher has it; its last part is the file's name.

    Raises
    ------
    MissingInputError
        If it is not there; the message has the commands that fetch it.
    """
    if options.weights is not None:
        return options.weights
    places = list_places(url, options)
    for path in places:
        if path.is_file():
            return path
    folder = f" --weights-dir {shlex.quote(str(options.weights_dir))}" if options.weights_dir else ""
    raise MissingInputError(
        f"weights of {name} not found: {' or '.join(map(str, places))}. Nothing is downloaded during a run; fetch them "
        f"beforehand with: dnnbrain --fetch-weights {shlex.quote(name)}{folder}, or on another machine with: "
        f"curl -fL --create-dirs -o {shlex.quote(str(places[0]))} {url} (or name another file with --weights)."
    )


def list_places(url: str, options: NetworkOptions) -> list[Path]:
    """List where a published file may be; the first is where it would be put."""
    return [folder / url.rpartition("/")[2] for folder in list_folders(options)]


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dictionary (``.safetensors``, or a ``.pth`` with nothing but tensors) and its SHA-256.

    Training programs wrap it in ``{'state_dict': ...}`` or ``{'model': ...}``, beside numbers; it is taken out.

    Raises
    ------
    MissingInputError
        If there is no such file.
    BadDataError
        If the hash in the file's name (``name-0123abcd.pth``) is not the file's, if the file is damaged, or if it holds
        anything but tensors (it may then be an attack; it is not executed).
    """
    if not path.is_file():
        raise MissingInputError(f"file of weights not found: {path}")
    advice = _OTHER_FORMATS.get(path.suffix)
    if advice is None and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                advice = (
                    "TorchScript, which hides its layers; save the state_dict() of the module that it was made from"
                )
    if advice is not None:
        raise BadDataError(f"{path}: no file of weights: {advice}.")
    sha256 = check_hash(path)
    content = _load_tensors(path)
    while isinstance(content, Mapping) and (inner := _find_inner(content)) is not None:
        content = inner
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise BadDataError(f"{path}: should hold a state dictionary (names and tensors), not {_describe(content)}.")
    return dict(content), sha256


def check_hash(path: Path, origin: str = "") -> str:
    """Compute a file's SHA-256, and compare it with the digits in its name, or in that of its origin, if there are any.

    Raises
    ------
    BadDataError
        If they differ, unless the digits are a date (``mine-20260131.pth``).
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", origin or path.name)
    if named and not sha256.startswith(named[1]) and not _DATE.fullmatch(named[1]):
        raise BadDataError(
            f"{origin or path}: the SHA-256 should start with {named[1]}, as the name says, but is {sha256[:16]}...; "
            "the file is incomplete or not what it says. Fetch it again."
        )
    return sha256


def _load_tensors(path: Path) -> Any:
    """Read what a file holds, as long as it is tensors, numbers, texts and collections of them."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # settings of a training program; inert
            return torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise BadDataError(f"{path}: cannot be read as weights: {error}") from error
    except Exception as error:  # damaged pickles fail in as many ways as there are bytes
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it needs {named[1]} to be run, as whole models do" if named else type(error).__name__
        raise BadDataError(
            f"{path}: not a readable file of tensors only ({what}); it was refused, and nothing in it was run. "
            "Save the model's state_dict(), best as .safetensors."
        ) from error


def _find_inner(content: Mapping[str, Any]) -> Any:
    return next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"


def fill_model(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Put the weights into the model, without a prefix of their names: every tensor, and none left over.

    Raises
    ------
    BadDataError
        If names or shapes differ: the weights are another architecture's.
    """
    wanted = model.state_dict()
    state = strip_prefix(state, model)
    shapes = {
        name: f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    }
    fitting = OrderedDict((name, tensor) for name, tensor in state.items() if name not in shapes)
    if state.keys() == wanted.keys():
        fitting._metadata = wanted._metadata  # type: ignore[attr-defined]
    # else perhaps an old file: without the versions of modules, these bring names of former versions up to date
    mismatch = f"{source}: weights of another architecture than {type(model).__name__}"
    try:
        missing, extra = model.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:
        raise BadDataError(f"{mismatch}: {str(error).strip()}") from error
    kinds = (
        ("missing", [name for name in missing if name not in shapes]),
        ("unexpected", extra),
        ("of another shape", list(shapes.values())),
    )
    problems = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in kinds if names]
    if problems:
        raise BadDataError(f"{mismatch} ({'; '.join(problems)}).")


def strip_prefix(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Leave out what all names of a file begin with and the model's do not (``module.`` of data parallel training)."""
    first = next(iter(model.state_dict()), "")
    for name in state:
        prefix = name.removesuffix(first)
        if prefix != name and prefix.endswith(".") and all(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def hash_tensors(model: nn.Module) -> str:
    """Compute the SHA-256 over names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def freeze_model(model: nn.Module) -> nn.Module:
    """Make a model safe to look at: evaluation mode, float32, no gradients, and no module that works in place.

    In-place modules would overwrite a layer's values before they are read, or not, depending on what else is read.

    Raises
    ------
    UsageError
        For TorchScript, whose inner modules cannot be observed.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("a TorchScript model hides its layers; give the nn.Module that it was made from.")
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return model.eval().requires_grad_(requires_grad=False).float()


def warn_licence(name: str, licence: str) -> None:
    """Warn if the licence of the weights does not allow everything that the user may have in mind."""
    if _RESTRICTED.search(licence):
        logger.warning(
            "%s: the licence of the weights (%s) restricts their use; see that it allows yours", name, licence
        )


def fetch_published(
    name: str, url: str, licence: str, options: NetworkOptions, progress: Progress | None = None
) -> Path:
    """Download a published file of weights into the user's folder or torch's cache, unless it is there, and right.

    Raises
    ------
    MissingInputError, BadDataError, CannotWriteError
        See `download_file`.
    """
    logger.info("%s: licence of the weights: %s", name, licence)
    warn_licence(name, licence)
    places = list_places(url, options)
    for path in filter(Path.is_file, places):
        try:
            check_hash(path)
        except BadDataError as error:
            logger.warning("%s", error)
        else:
            return path
    return download_file(url, places[0], progress)


def download_file(url: str, target: Path, progress: Progress | None = None) -> Path:
    """Download a file whole or not at all, and check the hash in the address.

    Parameters
    ----------
    url : str
        ``https``, ``http`` or ``file``.
    target : Path
        Where to put it; what is there, is replaced.
    progress : callable, optional
        Called with the megabytes that are here, and their number in all (0 if the server does not tell).

    Raises
    ------
    MissingInputError
        If it cannot be fetched; the message has the reason.
    BadDataError
        If its hash is not the one in the name.
    CannotWriteError
        If the folder cannot be written.
    """
    if not url.startswith(("https:", "http:", "file:")):
        raise UsageError(f"{url}: only https, http and file addresses are fetched.")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for block, done, total in _read_url(url):
                file.write(block)
                if progress:
                    progress(done // _MEGA, total // _MEGA)
        check_hash(part, url)
        part.replace(target)
    except OSError as error:
        raise CannotWriteError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return target


def _read_url(url: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield blocks of what is at an address, the bytes so far, and how many there are."""
    done = total = 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310  # the caller checked the scheme
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(_MEGA):
                done += len(block)
                yield block, done, total
    except urllib.error.HTTPError as error:
        error.close()
        raise MissingInputError(f"{url}: cannot be fetched: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise MissingInputError(f"{url}: cannot be fetched: {reason}") from error
    if done < total:
        raise MissingInputError(f"{url}: the connection broke after {done} of {total} bytes; try again.")
