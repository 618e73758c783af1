"""What each output says of itself: where it comes from, in what space it lies, and how it was made.

Nothing here depends on the time, the user or the machine's folders: the same analysis gives the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dnnbrain_app import __version__
from dnnbrain_app.records import BrainSpace

_PACKAGES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "nibabel",
    "nilearn",
    "torch",
    "torchvision",
    "pillow",
    "timm",
    "onnxruntime",
    "keras",
    "av",
)


def make_uri(path: Path, roots: Mapping[str, Path]) -> str:
    """Name a file by the dataset it belongs to.

    Parameters
    ----------
    path : Path
        The file.
    roots : mapping of str to Path
        Root of each dataset by its name in ``DatasetLinks``; ``""`` is the output dataset itself.

    Returns
    -------
    str
        ``bids:<name>:<path in the dataset>`` for the innermost dataset that holds the file; the bare file name where
        none does, as a path of this machine would tell a reader nothing.

    Examples
    --------
    >>> make_uri(Path("/data/sub-01/x.tsv"), {"": Path("/out"), "raw": Path("/data")})
    'bids:raw:sub-01/x.tsv'
    """
    # the file itself may be a link into git-annex: only its folder is followed
    path = path.parent.resolve() / path.name
    holders = {name: root.resolve() for name, root in roots.items()}
    holders = {name: root for name, root in holders.items() if path.is_relative_to(root)}
    if not holders:
        return path.name
    name = max(holders, key=lambda key: len(holders[key].parts))
    return f"bids:{name}:{quote(path.relative_to(holders[name]).as_posix(), safe='/+')}"


def describe_space(space: BrainSpace, bold: Path) -> dict[str, Any]:
    """Say where a map lies, with the words of the data it was computed from where they have them.

    Parameters
    ----------
    space : BrainSpace
        The space of the map.
    bold : Path
        The preprocessed data; the JSON beside it is read.

    Returns
    -------
    dict
        ``SpatialReference``, ``Resolution`` with ``res-``, ``Density`` with ``den-``, ``SkullStripped`` for volumes:
        what BIDS requires of a derived image.
    """
    given = read_json(bold.with_name(bold.name.split(".", 1)[0] + ".json"))
    described = {"SpatialReference": given.get("SpatialReference", space.name)}
    if "res" in space.entities:
        described["Resolution"] = given.get("Resolution", f"As the preprocessed data (res-{space.entities['res']})")
    if "den" in space.entities:
        described["Density"] = given.get("Density", f"{space.entities['den']}: {space.n_voxels} vertices or voxels")
    if space.format == "nifti":
        described["SkullStripped"] = True  # maps have values inside the mask only, whatever the data had
    return described


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_map(
    description: str,
    sources: Sequence[str],
    *,
    space: Mapping[str, Any] | None = None,
    maps: Sequence[str] = (),
    statistic: str | None = None,
    units: str | None = None,
    network: str | None = None,
    weights: Mapping[str, Any] | None = None,
    layers: Sequence[str] = (),
    cross_validation: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Describe an output; what is not given does not appear.

    Parameters
    ----------
    description : str
        What the file holds, in a sentence.
    sources : sequence of str
        What it was computed from, as `make_uri` spells it.
    space : mapping, optional
        From `describe_space`.
    maps : sequence of str
        Names of the maps in the order of the file; NIfTI has them nowhere else.
    statistic, units : str, optional
        ``Pearson correlation``, ``percent signal change`` ...
    network : str, optional
        The network's name.
    weights : mapping, optional
        ``Activations.provenance``: weights, digest, licence, transform, precision.
    layers : sequence of str
        The layers, in the order of the forward pass.
    cross_validation : mapping, optional
        Scheme, folds, what is kept together, seed.
    parameters : mapping, optional
        The options of the analysis.
    columns : mapping of str to str, optional
        For a table: what each column holds.
    versions : mapping, optional
        From `list_versions`.

    Returns
    -------
    dict
        Ready for `files.write_json`.
    """
    described = {
        "Description": description,
        "Sources": list(sources),
        **(space or {}),
        "Statistic": statistic,
        "Units": units,
        "Maps": list(maps),
        "Network": network,
        "Weights": weights,
        "Layers": list(layers),
        "CrossValidation": cross_validation,
        "Parameters": parameters,
        "SoftwareVersions": versions,
        **{name: {"Description": text} for name, text in (columns or {}).items()},
    }
    return {key: value for key, value in described.items() if value is not None and value != [] and value != {}}


def list_versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """List the versions of dnnbrain, Python, and the packages that the numbers depend on, of those installed."""
    versions = {"dnnbrain": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
