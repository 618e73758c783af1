"""What a report is made of: records and plain values, all of them to be found in the files of an output folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, BrainSpace, EncodingScores, Mesh, Rdm, RsaScores, Unit


@dataclass(frozen=True, slots=True)
class RunRow:
    """One row of the data table.

    Parameters
    ----------
    label : str
        ``task-objects_run-01``.
    n_trials : int
        Trials modelled.
    n_volumes, repetition_time, start_time : optional
        As in :class:`~dnnbrain_app.records.Run`; seconds. None where responses had been estimated before.
    n_dropped : int
        Trials left out (no stimulus, outside the run ...).
    confounds : tuple of str
        Names of the nuisance regressors.
    mean_displacement : float, optional
        Mean framewise displacement in mm.
    """

    label: str
    n_trials: int
    n_volumes: int | None = None
    repetition_time: float | None = None
    start_time: float | None = None
    n_dropped: int = 0
    confounds: tuple[str, ...] = ()
    mean_displacement: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """The design matrix of one run.

    Parameters
    ----------
    run : str
        Which run.
    matrix : array of shape (n_volumes, n_columns)
        Regressors, in their own units.
    names : tuple of str
        Names of the columns.
    frame_times : array of shape (n_volumes,)
        Seconds.
    note : str
        What is shown and what is not, e.g. ``first 8 of 92 trials``.
    """

    run: str
    matrix: Array
    names: tuple[str, ...]
    frame_times: Array
    note: str = ""

    def __post_init__(self) -> None:
        shape = (len(self.frame_times), len(self.names))
        if self.matrix.shape != shape:
            raise BadDataError(f"design of {self.run}: shape {self.matrix.shape}, not {shape}")


@dataclass(frozen=True, slots=True, eq=False)
class NetworkReport:
    """What one network explains of one unit.

    Parameters
    ----------
    network : str
        Label of the network (as in ``model-<label>``).
    layers : tuple of str
        Names, in the order of the forward pass.
    encoding : EncodingScores, optional
        Per voxel.
    regions : tuple of str
        Names of the regions of ``region_r``.
    region_r : array of shape (n_layers, n_regions), optional
        Encoding score, mean over each region's voxels.
    rsa : RsaScores, optional
        Per region; has its own names of regions.
    layer_rdms : tuple of Rdm
        One a layer, or none.
    further : tuple of str
        Maps that there are beyond those of ``encoding``: ``p``, ``pfwe``, ``rnorm`` ...
    """

    network: str
    layers: tuple[str, ...]
    encoding: EncodingScores | None = None
    regions: tuple[str, ...] = ()
    region_r: Array | None = None
    rsa: RsaScores | None = None
    layer_rdms: tuple[Rdm, ...] = ()
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.layers), len(self.regions))
        if self.region_r is not None and self.region_r.shape != shape:
            raise BadDataError(f"network {self.network}: region_r has shape {self.region_r.shape}, not {shape}")


@dataclass(frozen=True, slots=True, eq=False)
class ResponseReport:
    """How good the responses are that everything else is about.

    Parameters
    ----------
    model : str
        As in the responses' options.
    counts : array of int, shape (n_stimuli,)
        Trials of each stimulus.
    n_runs : int
        Runs that the trials are of.
    maps : mapping of str to array of shape (n_voxels,)
        Those there are: ``noiseceiling`` (share of variance), ``reliability``, ``ncsnr``, ``fraction`` (of ridge) and
        ``hrf`` (number in the library, from 1).
    min_reliability : float
        Below it, voxels were left out; 0: none were.
    library : mapping of str to float
        Name of each HRF of the library and the time of its peak, s.
    regions : mapping of str to bool array of shape (n_voxels,)
        Voxels of each region of the atlas.
    has_frequent : bool
        Whether a run had a stimulus so often that it got a regressor of its own in the models of other trials.
    """

    model: str
    counts: Array = field(default_factory=lambda: np.zeros(0, dtype=int))
    n_runs: int = 1
    maps: Mapping[str, Array] = field(default_factory=dict)
    min_reliability: float = 0.0
    library: Mapping[str, float] = field(default_factory=dict)
    regions: Mapping[str, Array] = field(default_factory=dict)
    has_frequent: bool = False

    @property
    def n_repeated(self) -> int:
        """Stimuli with two or more trials."""
        return int((self.counts > 1).sum())

    @property
    def has_ceiling(self) -> bool:
        """Whether repeats tell a noise ceiling for any voxel."""
        return "noiseceiling" in self.maps and bool(np.isfinite(self.maps["noiseceiling"]).any())

    @property
    def is_timeseries(self) -> bool:
        """Whether volumes are predicted, and no responses were estimated."""
        return self.model == "timeseries"


@dataclass(frozen=True, slots=True, eq=False)
class UnitReport:
    """One task in one space.

    Parameters
    ----------
    unit : Unit
        Which one.
    space : BrainSpace
        Where the columns of the maps lie.
    n_stimuli, n_trials : int
        Distinct stimuli and presentations analysed.
    runs : tuple of RunRow
        In the order of the data.
    networks : tuple of NetworkReport
        In the order asked for.
    region_rdms : tuple of Rdm
        One a region, or none.
    meshes : mapping
        ``{"L": Mesh, "R": Mesh}`` to draw on; empty where there is none.
    background : array of shape (n_voxels,), optional
        Mean image, drawn behind the maps of a volume.
    design : Design, optional
        Of one run.
    attributes : mapping of str to array of shape (n_stimuli,)
        Columns of ``stimuli.tsv``, in the order of the RDMs' items. One of them orders the RDMs.
    warnings : tuple of str
        What the reader must know: few repeats, runs or trials dropped ...
    responses : ResponseReport, optional
        How good the responses are.
    """

    unit: Unit
    space: BrainSpace
    n_stimuli: int
    n_trials: int
    runs: tuple[RunRow, ...] = ()
    networks: tuple[NetworkReport, ...] = ()
    region_rdms: tuple[Rdm, ...] = ()
    meshes: Mapping[str, Mesh] = field(default_factory=dict)
    background: Array | None = None
    design: Design | None = None
    attributes: Mapping[str, Array] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    responses: ResponseReport | None = None

    @property
    def held_out(self) -> str:
        """What encoding models predict."""
        is_timeseries = self.responses is not None and self.responses.is_timeseries
        return "held-out volumes" if is_timeseries else "responses to held-out stimuli"

    def __post_init__(self) -> None:
        for stat, values in (self.responses.maps if self.responses is not None else {}).items():
            if values.shape != (self.space.n_voxels,):
                raise BadDataError(
                    f"{self.unit.label}: map {stat} of shape {values.shape} in a space of {self.space.n_voxels}"
                )
        for scores in (network.encoding for network in self.networks):
            if scores is not None and scores.r.shape[1] != self.space.n_voxels:
                raise BadDataError(
                    f"{self.unit.label}: scores of {scores.r.shape[1]} voxels in a space of {self.space.n_voxels}"
                )


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the results came about.

    Parameters
    ----------
    command : str
        The command line that makes them again.
    configuration : str
        The resolved configuration, TOML.
    versions : mapping
        Software and version.
    seed : int, optional
        Of the random numbers.
    resources : mapping
        E.g. ``{"Time": "2 min 10 s", "Peak memory": "3.1 GB"}``.
    """

    command: str = ""
    configuration: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    resources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RenderedReport:
    """A finished report.

    Parameters
    ----------
    html : str
        The page, complete in itself.
    figures : mapping of str to bytes
        File name and content of each figure on its own (SVG or PNG, on white), for slides and papers.
    """

    html: str
    figures: Mapping[str, bytes]


def find_best(scores: Array) -> int | None:
    """Position of the highest score; None where no score is finite."""
    scores = np.asarray(scores, dtype=float)
    return int(np.nanargmax(scores)) if np.isfinite(scores).any() else None
