"""Weights: found on this machine, checked, and read without running what is in the file.

A pickle can run code. ``torchvision``'s own loader unpickles whatever lies in the hub cache under the right name, and
does not check its hash there; this one reads tensors only and checks. Nothing is ever downloaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError


def find_weights(url: str, given: Path | None) -> Path:
    """Find the file of weights: the one given, or else the one that torch's cache would have.

    Parameters
    ----------
    url : str
        Where the publisher has it; its last part is the file's name in ``$TORCH_HOME/hub/checkpoints``.
    given : Path or None
        The user's own file.

    Raises
    ------
    MissingInputError
        If it is not there; the message has the command that fetches it.
    """
    if given is not None:
        if not given.is_file():
            raise MissingInputError(f"file of weights not found: {given}")
        return given
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    path = Path(home).expanduser() / "hub" / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise MissingInputError(
            f"weights not found: {path}. Nothing is downloaded during a run; fetch them beforehand with: "
            f"curl -fL --create-dirs -o {shlex.quote(str(path))} {url} (or name another file with --weights)."
        )
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a state dictionary (``.safetensors``, or a ``.pth`` with nothing but tensors) and its SHA-256.

    Raises
    ------
    BadDataError
        If the hash in the file's name (``name-0123abcd.pth``) is not the file's, if the file is damaged, or if it holds
        anything but tensors (it may then be an attack; it is not executed).
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", path.name)
    if named and not sha256.startswith(named[1]):
        raise BadDataError(
            f"{path}: the SHA-256 should start with {named[1]}, as the name says, but is {sha256[:16]}...; "
            "the file is incomplete or not what it says. Delete it and fetch it again."
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise BadDataError(f"{path}: cannot be read as weights: {error}") from error
    except Exception as error:  # damaged pickles fail in as many ways as there are bytes
        raise BadDataError(
            f"{path}: not a readable file of tensors only ({type(error).__name__}); it was refused, and nothing in it "
            "was run. Save the model's state_dict(), best as .safetensors."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadDataError(f"{path}: should hold a state dictionary (names and tensors), not {_describe(state)}.")
    return dict(state), sha256


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(map(repr, list(content)[:5]))}"
    return f"a {type(content).__name__}"


def fill_model(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Put the weights into the model: every tensor, and none left over.

    Raises
    ------
    BadDataError
        If names or shapes differ: the weights are another architecture's.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
    problems = [f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in kinds if names]
    if problems:
        raise BadDataError(
            f"{source}: weights of another architecture than {type(model).__name__} ({'; '.join(problems)})."
        )
    model.load_state_dict(state)


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
