"""The nouns that pass between rooms.

Records are frozen and hold numpy arrays and plain values only: no record knows a file format, a device or a library
object, so the science can be called from a notebook with arrays and the readers and writers can change underneath.
Shapes are checked where a record is made. Letters follow the equations: ``K`` is stimulus x stimulus, ``Y`` is
stimulus x voxel ("voxel" stands for grayordinate and vertex as well).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from dnnbrain_app.errors import BadDataError

Array = NDArray[Any]
ImageFormat = Literal["cifti", "gifti", "nifti"]


def _require(condition: object, message: str) -> None:
    if not condition:
        raise BadDataError(message)


@dataclass(frozen=True, slots=True, eq=False)
class BrainPart:
    """One structure of a brain space and the columns of the data it owns.

    Parameters
    ----------
    structure : str
        CIFTI structure name (``CIFTI_STRUCTURE_CORTEX_LEFT``); ``CIFTI_STRUCTURE_OTHER`` for a NIfTI volume.
    start, stop : int
        The part's columns are ``start:stop``.
    vertices : array of shape (stop - start,), optional
        Vertex numbers, for a surface part.
    n_vertices : int
        Vertices of the whole mesh; 0 for a volume part.
    voxels : array of shape (stop - start, 3), optional
        Voxel indices, for a volume part.
    """

    structure: str
    start: int
    stop: int
    vertices: Array | None = None
    n_vertices: int = 0
    voxels: Array | None = None

    def __post_init__(self) -> None:
        _require((self.vertices is None) != (self.voxels is None), f"{self.structure}: vertices or voxels, not both")
        owned = self.vertices if self.vertices is not None else self.voxels
        assert owned is not None  # for the type checker; the line above proves it
        columns = self.stop - self.start
        _require(len(owned) == columns, f"{self.structure}: {len(owned)} elements in {columns} columns")

    @property
    def is_surface(self) -> bool:
        """Whether the part lies on a mesh."""
        return self.vertices is not None

    @property
    def hemisphere(self) -> Literal["L", "R"] | None:
        """``L`` or ``R`` for a cortical surface, else None."""
        side: dict[str, Literal["L", "R"]] = {"CIFTI_STRUCTURE_CORTEX_LEFT": "L", "CIFTI_STRUCTURE_CORTEX_RIGHT": "R"}
        return side.get(self.structure)


@dataclass(frozen=True, slots=True, eq=False)
class BrainSpace:
    """Where each column of the data lies in the brain, and how to write it back.

    Parameters
    ----------
    name : str
        BIDS ``space`` label, e.g. ``fsLR``, ``fsaverage5``; ``boldref`` where the file has none.
    format : {'cifti', 'gifti', 'nifti'}
        The family of files the data came in, and go out in.
    parts : tuple of BrainPart
        In column order, without gaps.
    entities : mapping
        The entities to copy into output names: of ``space``, ``cohort``, ``res``, ``den`` those that the input has.
    affine : array of shape (4, 4), optional
        Voxel to world (mm), where there are voxels.
    shape : tuple of int, optional
        Shape of the volume, where there are voxels.
    xform_code : int
        NIfTI ``sform_code`` of the input.
    """

    name: str
    format: ImageFormat
    parts: tuple[BrainPart, ...]
    entities: Mapping[str, str] = field(default_factory=dict)
    affine: Array | None = None
    shape: tuple[int, int, int] | None = None
    xform_code: int = 4

    def __post_init__(self) -> None:
        end = 0
        for part in self.parts:
            _require(part.start == end, f"space {self.name}: {part.structure} starts at column {part.start}, not {end}")
            end = part.stop
            _require(part.is_surface or self.affine is not None, f"space {self.name}: voxels without an affine")

    @property
    def n_voxels(self) -> int:
        """Number of columns (grayordinates, vertices or voxels)."""
        return self.parts[-1].stop if self.parts else 0

    def matches(self, other: BrainSpace) -> bool:
        """Whether two spaces have the same columns in the same order."""
        if self.format != other.format or len(self.parts) != len(other.parts) or self.shape != other.shape:
            return False
        both_affines = self.affine is not None and other.affine is not None
        if both_affines and not np.allclose(self.affine, other.affine, atol=1e-3):  # type: ignore[arg-type]
            return False
        return all(
            a.structure == b.structure and a.n_vertices == b.n_vertices and np.array_equal(_elements(a), _elements(b))
            for a, b in zip(self.parts, other.parts, strict=True)
        )


def _elements(part: BrainPart) -> Array:
    elements = part.vertices if part.vertices is not None else part.voxels
    assert elements is not None
    return elements


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One preprocessed run of one participant in one space, with all that is needed to model it.

    Parameters
    ----------
    entities : mapping
        Entities of the raw run (``sub``, ``ses``, ``task``, ``run``, ...) with their labels as the raw data spell them.
    bold : tuple of Path
        The data: one file (CIFTI, NIfTI) or the left and the right hemisphere (GIFTI), in this order.
    events : Path
        The events table that applies to the run (inheritance resolved).
    confounds : Path or None
        fMRIPrep's confounds table.
    mask : Path or None
        Brain mask of a volume.
    repetition_time : float
        Seconds.
    start_time : float
        Seconds from the start of the run to the time that the first volume represents (fMRIPrep's ``StartTime``).
    n_volumes : int
        Number of time points in the file.
    """

    entities: Mapping[str, str]
    bold: tuple[Path, ...]
    events: Path
    confounds: Path | None
    mask: Path | None
    repetition_time: float
    start_time: float
    n_volumes: int

    @property
    def label(self) -> str:
        """The run as BIDS writes it, e.g. ``sub-01_task-objects_run-01``."""
        return "_".join(f"{k}-{v}" for k, v in self.entities.items())

    @property
    def frame_times(self) -> Array:
        r"""Time of each volume in seconds, :math:`t_k = StartTime + k \cdot TR`."""
        return self.start_time + self.repetition_time * np.arange(self.n_volumes)


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """The presentations of stimuli, one row a trial, over the runs of a participant.

    Parameters
    ----------
    onset, duration : array of shape (n_trials,)
        Seconds from the start of the trial's run.
    stimulus : array of str, shape (n_trials,)
        Stimulus identifiers.
    run : array of int, shape (n_trials,)
        Index into the participant's list of runs.
    run_labels : tuple of str
        One label for each run, e.g. ``task-objects_run-01``.
    """

    onset: Array
    duration: Array
    stimulus: Array
    run: Array
    run_labels: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.onset)
        _require(
            len(self.duration) == n and len(self.stimulus) == n and len(self.run) == n,
            "trials: onset, duration, stimulus and run differ in length",
        )
        _require(n == 0 or int(self.run.max()) < len(self.run_labels), "trials: a run without a label")

    def __len__(self) -> int:
        return len(self.onset)

    @property
    def repeat(self) -> Array:
        """How many times each trial's stimulus had been shown before (0 = first), in run then onset order."""
        seen: dict[str, int] = {}
        counts = np.zeros(len(self), dtype=int)
        for i in np.lexsort((self.onset, self.run)):
            counts[i] = seen.get(self.stimulus[i], 0)
            seen[self.stimulus[i]] = counts[i] + 1
        return counts

    def take(self, rows: Array) -> Trials:
        """Return the trials of the given rows (indices or booleans)."""
        return Trials(self.onset[rows], self.duration[rows], self.stimulus[rows], self.run[rows], self.run_labels)


@dataclass(frozen=True, slots=True, eq=False)
class StimulusSet:
    """The distinct stimuli, in the order in which every stimulus-indexed array has them.

    Parameters
    ----------
    ids : tuple of str
        Identifiers as the events name them.
    paths : tuple of Path
        The image of each.
    digests : tuple of str
        SHA-256 of each file.
    attributes : mapping of str to array of shape (n_stimuli,)
        Columns of ``stimuli.tsv``, where there is one.
    """

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    attributes: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        same_number = len(self.ids) == len(self.paths) == len(self.digests)
        _require(same_number, "stimuli: ids, paths and digests differ in number")
        _require(len(set(self.ids)) == len(self.ids), "stimuli: an identifier occurs twice")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, names: Iterable[str]) -> StimulusSet:
        """Return the named stimuli, in the order they have here."""
        wanted = set(names)
        rows = [i for i, name in enumerate(self.ids) if name in wanted]
        return StimulusSet(
            tuple(self.ids[i] for i in rows),
            tuple(self.paths[i] for i in rows),
            tuple(self.digests[i] for i in rows),
            {key: values[rows] for key, values in self.attributes.items()},
        )

    def distinct(self) -> tuple[StimulusSet, Array]:
        """Leave out copies: the first of each file, and for every stimulus the row that its file now has."""
        rows: dict[str, int] = {}
        places = np.array([rows.setdefault(digest, len(rows)) for digest in self.digests], dtype=int)
        firsts = np.unique(places, return_index=True)[1]
        return self.take(self.ids[i] for i in firsts), places

    def index(self, names: Array) -> Array:
        """Row number of each named stimulus."""
        position = {name: i for i, name in enumerate(self.ids)}
        return np.array([position[name] for name in names], dtype=int)


@dataclass(frozen=True, slots=True, eq=False)
class Gram:
    r"""A layer's activations as inner products between stimuli, exact whatever the layer's width.

    With activations :math:`X` (n_stimuli, n_features), :math:`K = X X^\top` and :math:`s = X \mathbf{1}`. Euclidean,
    cosine and correlation distances, kernel ridge, PCA scores and CKA follow from these without the features.

    Parameters
    ----------
    layer : str
        Name of the layer.
    shape : tuple of int
        Shape of one stimulus's activations: (channels, rows, columns), or (units,).
    depth : int
        Position among the requested layers in the order of the forward pass, from 0.
    K : array of shape (n_stimuli, n_stimuli), optional
        Inner products, float64. None where there are so many stimuli that no machine has the room; X is there then.
    row_sums : array of shape (n_stimuli,)
        Sum of each stimulus's activations, float64.
    X : array of shape (n_stimuli, n_features), optional
        The activations themselves, kept where n_features <= n_stimuli (the cheaper form then). May be a read-only
        map of a file: take rows of it, some at a time.
    """

    layer: str
    shape: tuple[int, ...]
    depth: int
    K: Array | None
    row_sums: Array
    X: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.row_sums)
        _require(self.K is not None or self.X is not None, f"layer {self.layer}: neither K nor X")
        k_fits = self.K is None or self.K.shape == (n, n)
        _require(k_fits, f"layer {self.layer}: K does not fit {n} row sums")
        x_fits = self.X is None or self.X.shape == (n, self.n_features)
        _require(x_fits, f"layer {self.layer}: X does not fit the layer's shape {self.shape}")

    @property
    def n_features(self) -> int:
        """Units of the layer."""
        return int(np.prod(self.shape))

    def take(self, rows: Array) -> Gram:
        """Return the Gram of some of the stimuli."""
        K = None if self.K is None else self.K[np.ix_(rows, rows)]
        X = None if self.X is None else self.X[rows]
        return Gram(self.layer, self.shape, self.depth, K, self.row_sums[rows], X)


class Grams(Sequence[Gram]):
    """Layers that are read when they are asked for, so that only a few are in memory at once.

    Parameters
    ----------
    n_layers : int
        How many there are.
    read : callable
        From a layer's position to its Gram.
    """

    _KEPT = 2  # threads that look ahead work on two layers at a time

    def __init__(self, n_layers: int, read: Callable[[int], Gram]) -> None:
        self._n_layers = n_layers
        self._read = lru_cache(self._KEPT)(read)

    def __len__(self) -> int:
        return self._n_layers

    @overload
    def __getitem__(self, index: int) -> Gram: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Gram]: ...
    def __getitem__(self, index: int | slice) -> Gram | Sequence[Gram]:
        if isinstance(index, slice):
            places = range(self._n_layers)[index]
            return Grams(len(places), lambda i: self._read(places[i]))
        return self._read(range(self._n_layers)[index])  # the range counts negative ones, and refuses others


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What a network makes of a stimulus set: one Gram a layer, in the order of the forward pass.

    Parameters
    ----------
    network : str
        The network's label, letters and digits only (as in ``model-<label>``).
    stimuli : tuple of str
        Identifiers of the rows.
    names : tuple of str
        Names of the layers.
    layers : sequence of Gram
        One a layer; may be `Grams`.
    provenance : mapping
        Network name, weights and their digest, transform, precision: what a sidecar must say.
    """

    network: str
    stimuli: tuple[str, ...]
    names: tuple[str, ...]
    layers: Sequence[Gram]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(len(self.names) == len(self.layers), f"{len(self.layers)} layers with {len(self.names)} names")

    def take(self, stimuli: tuple[str, ...]) -> Activations:
        """Return the activations for some of the stimuli, in the order given."""
        if stimuli == self.stimuli:
            return self
        position = {name: i for i, name in enumerate(self.stimuli)}
        rows = np.array([position[name] for name in stimuli], dtype=int)
        taken = Grams(len(self.layers), lambda i: self.layers[i].take(rows))
        return Activations(self.network, stimuli, self.names, taken, self.provenance)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """What the channels of a layer did over a stimulus set, and the stimuli that each liked best.

    Parameters
    ----------
    layer : str
        Name of the layer.
    n_stimuli : int
        Over how many stimuli.
    mean, sd, maximum : array of shape (n_channels,)
        Over stimuli and positions.
    zeros : array of shape (n_channels,)
        Share of values that are exactly 0.
    top_values : array of shape (n_top, n_channels)
        The highest values of a channel's maximum over positions, falling.
    top_stimuli : array of int, shape (n_top, n_channels)
        Rows of the stimuli that have them.
    """

    layer: str
    n_stimuli: int
    mean: Array
    sd: Array
    maximum: Array
    zeros: Array
    top_values: Array
    top_stimuli: Array


@dataclass(frozen=True, slots=True, eq=False)
class Betas:
    """Estimated responses.

    Parameters
    ----------
    data : array of shape (n_rows, n_voxels)
        float32; NaN where a voxel has no signal.
    trials : Trials
        What each row is: one trial a row, or for the ``condition`` model one stimulus a row (its first trial).
    space : BrainSpace
        What each column is.
    model : str
        ``lss``, ``condition``, ...
    """

    data: Array
    trials: Trials
    space: BrainSpace
    model: str

    def __post_init__(self) -> None:
        _require(
            self.data.shape == (len(self.trials), self.space.n_voxels),
            f"betas of shape {self.data.shape} for {len(self.trials)} trials and {self.space.n_voxels} voxels",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Atlas:
    """Named regions of a brain space.

    Parameters
    ----------
    name : str
        BIDS ``seg`` label.
    regions : mapping of str to bool array of shape (n_voxels,)
        Which columns belong to each region; a region may be a union of labels.
    """

    name: str
    regions: Mapping[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Rdm:
    """A representational dissimilarity matrix.

    Parameters
    ----------
    name : str
        Region or layer.
    dissimilarities : array of shape (n * (n - 1) / 2,)
        Upper triangle, row by row (scipy's ``pdist`` order), float64.
    items : tuple of str
        The n stimuli.
    metric : str
        ``correlation``, ...
    """

    name: str
    dissimilarities: Array
    items: tuple[str, ...]
    metric: str = "correlation"

    def __post_init__(self) -> None:
        n = len(self.items)
        _require(
            self.dissimilarities.shape == (n * (n - 1) // 2,),
            f"RDM {self.name}: {self.dissimilarities.shape} dissimilarities for {n} items",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Significance:
    """How surprising scores are where there is nothing to find; arrays have the shape of the scores, and their NaN.

    Parameters
    ----------
    p_value : array
        Probability of the score or a higher one, of each by itself.
    q_value : array
        Lowest false discovery rate over the voxels of a map at which the score is significant.
    p_fwe : array, optional
        Probability that any voxel of the map has the score or a higher one; None where this was not asked for.
    """

    p_value: Array
    q_value: Array
    p_fwe: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodingScores:
    """How well each layer predicts each voxel.

    Parameters
    ----------
    network : str
        Label of the network.
    layers : tuple of str
        Names, in the order of the forward pass.
    r : array of shape (n_layers, n_voxels)
        Pearson correlation between predicted and measured responses of held-out stimuli, mean over folds.
    rsquared : array of shape (n_layers, n_voxels)
        Held-out R squared against the training mean.
    alpha : array of shape (n_layers, n_voxels)
        Ridge penalty over the mean eigenvalue of the training kernel, geometric mean over folds.
    best_layer : array of shape (n_voxels,)
        1-based number of the layer with the highest r, 0 where no layer is significant.
    edge_fraction : float
        Share of fits of significant voxels by their best layer whose penalty lies on an edge of the grid.
    fold_r : array of shape (n_folds, n_layers, n_voxels), optional
        Correlation in each fold, float32.
    layer_significance : Significance, optional
        Of each layer's r, (n_layers, n_voxels); maps of single layers, so corrected over voxels, not layers.
    best_significance : Significance, optional
        Of the highest r over layers, (n_voxels,); corrected for the choice.
    """

    network: str
    layers: tuple[str, ...]
    r: Array
    rsquared: Array
    alpha: Array
    best_layer: Array
    edge_fraction: float
    fold_r: Array | None = None
    layer_significance: Significance | None = None
    best_significance: Significance | None = None

    def __post_init__(self) -> None:
        n_layers, n_voxels = self.r.shape
        _require(n_layers == len(self.layers), f"scores of {n_layers} layers with {len(self.layers)} names")
        same_shape = self.rsquared.shape == self.alpha.shape == self.r.shape
        _require(same_shape, "scores: r, rsquared and alpha differ in shape")
        _require(self.best_layer.shape == (n_voxels,), "scores: best_layer must have one value a voxel")


@dataclass(frozen=True, slots=True, eq=False)
class RsaScores:
    """How well each layer's RDM agrees with each region's.

    Parameters
    ----------
    network : str
        Label of the network.
    layers : tuple of str
        Names, in the order of the forward pass.
    regions : tuple of str
        Names of the regions.
    similarity : mapping of str to array of shape (n_layers, n_regions)
        By comparison: ``pearson``, ``spearman``, ``rho-a``, ...
    tested : str
        The comparison that `inference` is about; empty where there is none.
    inference : mapping of str to array of shape (n_layers, n_regions)
        ``p``, ``p_fwe`` (over layers), ``q`` (over regions), ``low`` and ``high`` (interval), as far as they are known.
    """

    network: str
    layers: tuple[str, ...]
    regions: tuple[str, ...]
    similarity: Mapping[str, Array]
    tested: str = ""
    inference: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.regions))
        for name, values in {**self.similarity, **self.inference}.items():
            _require(values.shape == shape, f"RSA {name}: shape {values.shape}, not {shape}")


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """What is computed and written together: one participant x task x space, over the runs selected.

    Parameters
    ----------
    participant : str
        Label without ``sub-``.
    task : str
        Label without ``task-``.
    space : str
        Space label of the data, as in ``BrainSpace.name``.
    entities : mapping
        Entities of the outputs' names: those that all runs share (``sub``, ``task``, ``ses`` where there is one
        session only, ``acq`` ...) and the data's ``space``, ``cohort``, ``res``, ``den``; never ``run`` or ``hemi``.
    runs : tuple of Run
        In session, then run order.
    """

    participant: str
    task: str
    space: str
    entities: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """The unit as a name, e.g. ``sub-01_task-objects_space-fsLR_den-91k``."""
        return "_".join(f"{k}-{v}" for k, v in self.entities.items())


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A cortical surface to draw on.

    Parameters
    ----------
    name : str
        What it is and where it comes from, for the caption.
    coordinates : array of shape (n_vertices, 3)
        Millimetres.
    faces : array of int, shape (n_faces, 3)
        Triangles.
    background : array of shape (n_vertices,), optional
        Sulcal depth, for shading.
    """

    name: str
    coordinates: Array
    faces: Array
    background: Array | None = None
