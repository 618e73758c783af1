r"""Which voxels lie within a radius of each voxel: balls in a volume, discs on a cortical surface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import block_diag, csr_array

from dnnbrain_app.analyses.geodesics import measure_geodesics
from dnnbrain_app.errors import BadDataError, MissingInputError, UsageError
from dnnbrain_app.records import Array, BrainPart, BrainSpace, Mesh

ROWS = 8192  # voxels whose neighbours are looked up at a time
ROUNDING = 1 + 1e-6  # a voxel at exactly the radius is inside, whatever the affine's last digit


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhoods:
    """The searchlight of each voxel.

    Parameters
    ----------
    members : csr_array of shape (n_voxels, n_voxels), float32
        1 where the column's voxel belongs to the searchlight around the row's; indices sorted.
    positions : array of shape (n_voxels, 3)
        Millimetres.
    """

    members: csr_array
    positions: Array

    def keep(self, usable: Array) -> csr_array:
        """Return the members without voxels that have no signal, as centres and as members.

        Parameters
        ----------
        usable : array of bool, shape (n_voxels,)
        """
        kept = usable[self.members.indices] & np.repeat(usable, np.diff(self.members.indptr))
        ends = np.concatenate(([0], np.cumsum(kept)))[self.members.indptr]
        arrays = self.members.data[kept], self.members.indices[kept], ends
        return csr_array(arrays, shape=self.members.shape)


def find_neighbourhoods(
    space: BrainSpace,
    meshes: Mapping[str, Mesh],
    radius: float,
    *,
    memory: int,
    progress: Callable[[int, int], None] | None = None,
) -> Neighbourhoods:
    r"""Find the voxels within a radius of each voxel.

    In a volume they are those in the data (hence in the mask) whose centre is at most the radius away in millimetres,
    by the affine; on a surface, the vertices in the data at most the radius away along the surface. No neighbourhood
    crosses from one structure of a CIFTI file to another.

    Parameters
    ----------
    space : BrainSpace
        Where the columns of the data lie.
    meshes : mapping of str to Mesh
        ``L`` and ``R``, where there are surface parts: of true size (midthickness), neither inflated nor a sphere.
    radius : float
        Millimetres.
    memory : int
        Bytes for the result.
    progress : callable, optional
        Called with (done, total), in voxels.

    Returns
    -------
    Neighbourhoods

    Raises
    ------
    UsageError
        The radius is not positive, or the result does not fit the memory.
    MissingInputError
        There is no mesh for a surface part.
    BadDataError
        The mesh has another number of vertices.
    """
    if not radius > 0:
        raise UsageError(f"searchlight radius {radius} mm: it must be more than 0")
    found, positions, n_entries = [], [], 0
    for part in space.parts:
        if part.is_surface:
            mesh = _find_mesh(part, meshes)
            positions.append(mesh.coordinates[part.vertices])
            told = None if progress is None else partial(_add_done, progress, part, space.n_voxels)
            members = measure_geodesics(mesh.faces, mesh.coordinates, radius, told)[part.vertices][:, part.vertices]
        else:
            assert part.voxels is not None  # BrainPart has the one or the other
            assert space.affine is not None  # BrainSpace has seen to it
            positions.append(part.voxels @ space.affine[:3, :3].T + space.affine[:3, 3])
            members = find_voxel_neighbours(part.voxels, space.affine, radius)
        members.sort_indices()
        n_entries += members.nnz
        if 16 * n_entries > memory:  # 8 bytes an entry, twice while the parts are put together
            raise UsageError(
                f"searchlights of {radius:g} mm have {n_entries / part.stop:.0f} voxels on average, which takes more "
                f"than the {memory / 1e9:.2f} GB there are; take a smaller radius, or allow more memory"
            )
        found.append(csr_array((np.ones(members.nnz, np.float32), members.indices, members.indptr), members.shape))
    return Neighbourhoods(csr_array(block_diag(found, format="csr")), np.concatenate(positions))


def _add_done(progress: Callable[[int, int], None], part: BrainPart, n_voxels: int, share: float) -> None:
    progress(part.start + round(share * (part.stop - part.start)), n_voxels)


def _find_mesh(part: BrainPart, meshes: Mapping[str, Mesh]) -> Mesh:
    mesh = meshes.get(part.hemisphere or "")
    if mesh is None:
        raise MissingInputError(
            f"no surface for {part.structure} with {part.n_vertices} vertices, on which to measure the radius of "
            "searchlights; give the derivatives with the participant's midthickness surfaces, or data in a volume"
        )
    if len(mesh.coordinates) != part.n_vertices:
        raise BadDataError(
            f"{mesh.name} has {len(mesh.coordinates)} vertices, but {part.structure} has {part.n_vertices}"
        )
    return mesh


def find_voxel_neighbours(voxels: Array, affine: Array, radius: float) -> csr_array:
    r"""Find voxels :math:`j` with :math:`\|A (i - j)\| \le radius`, itself included.

    Parameters
    ----------
    voxels : array of int, shape (n_voxels, 3)
        Indices of the voxels that there are.
    affine : array of shape (4, 4)
        Voxel to world, mm; :math:`A` is its first three rows and columns. Oblique and sheared ones are right as well.
    radius : float
        Millimetres.

    Returns
    -------
    csr_array of bool, shape (n_voxels, n_voxels)
    """
    A = affine[:3, :3]
    reach = np.floor(radius * ROUNDING * np.linalg.norm(np.linalg.inv(A), axis=1)).astype(int)
    box = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = box[np.linalg.norm(box @ A.T, axis=1) <= radius * ROUNDING]
    shape = np.ptp(voxels, axis=0) + 1 + 2 * reach
    places = np.ravel_multi_index((voxels - voxels.min(axis=0) + reach).T, shape)
    row_of = np.full(int(np.prod(shape)), -1, dtype=np.int32)
    row_of[places] = np.arange(len(voxels))
    steps = offsets @ np.array([shape[1] * shape[2], shape[2], 1])
    indices, counts = [], []
    for start in range(0, len(voxels), ROWS):
        rows = row_of[places[start : start + ROWS, None] + steps]
        indices.append(rows[rows >= 0])
        counts.append((rows >= 0).sum(axis=1))
    joined = np.concatenate(indices)
    ends = np.concatenate(([0], np.cumsum(np.concatenate(counts))))
    return csr_array((np.ones(len(joined), dtype=bool), joined, ends), shape=(len(voxels), len(voxels)))
