"""What the methods text is written from: plain values, told by settings and by the files of an output folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """A network, as its provenance names it.

    Parameters
    ----------
    name : str
        As asked for: ``alexnet``, ``efficientnet_lite0``.
    weights : str
        E.g. ``IMAGENET1K_V1``.
    layers : tuple of str
        Those analysed.
    transform : str
        How images were prepared, in words.
    source : str
        Package that defines it: ``torchvision`` is cited.
    precision : str
        ``float32``, or ``bfloat16``.
    reduction : tuple of str
        What was kept of the layers' units, in words; empty: all.
    projection : int
        Dimensions to which wider layers were projected; 0: none were.
    frame_rate : float
        Frames a second of videos that a network of images looked at; 0: there were no videos.
    clip_frames : int
        Frames of each video that a network of clips looked at; 0: it looks at images.
    """

    name: str
    weights: str = ""
    layers: tuple[str, ...] = ()
    transform: str = ""
    source: str = ""
    precision: str = "float32"
    reduction: tuple[str, ...] = ()
    projection: int = 0
    frame_rate: float = 0.0
    clip_frames: int = 0


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """The general linear model; fields as in the responses' options.

    Parameters
    ----------
    model, hrf, scaling, noise_model : str
        ``lss``, ``lsa``, ``glmsingle``, ``condition``, ``timeseries`` or ``precomputed``; ``glover`` or ``spm``, also
        with derivatives, or ``fir``; ``zscore``, ``percent`` or ``none``; ``ar1`` or ``ols``.
    motion, compcor : int
        Number of regressors.
    spikes : bool
        Whether outlier volumes had regressors of their own.
    high_pass : float, optional
        Longest period kept, s, of the drifts made by the app.
    drifts_from_confounds : bool, optional
        True where the cosine regressors of the confounds file were used instead; None: not known yet.
    fd_threshold : float
        Framewise displacement in mm above which volumes were scrubbed; 0: none were.
    fir_length : float
        Delays that ``fir`` covers, s.
    min_reliability : float
        Least reliability of the voxels analysed; 0: all were.
    has_ceiling : bool
        Whether noise ceilings were estimated.
    has_frequent : bool
        Whether a run had a stimulus so often that it got a regressor of its own in the models of other trials.
    is_regularised : bool, optional
        Whether repeats allowed ``glmsingle`` noise regressors and ridge; None: not known yet.
    """

    model: str
    hrf: str
    scaling: str
    noise_model: str
    motion: int
    compcor: int
    spikes: bool
    high_pass: float | None = None
    drifts_from_confounds: bool | None = None
    fd_threshold: float = 0.0
    fir_length: float = 0.0
    min_reliability: float = 0.0
    has_ceiling: bool = False
    has_frequent: bool = False
    is_regularised: bool | None = None


@dataclass(frozen=True, slots=True)
class EncodingFacts:
    """The encoding models; fields as in their options.

    Parameters
    ----------
    n_folds, n_alphas : int
        Outer folds; penalties on the grid.
    folds_by : str
        What was never split over folds.
    alpha_min, alpha_max : float
        Ends of the grid, over the mean eigenvalue of the training kernel.
    q : float, optional
        False discovery rate below which a voxel entered the best-layer map.
    n_null : int
        Permuted voxels that the rate was controlled with.
    n_permutations : int
        Permutations of all voxels for the family-wise error rate; 0: it was not controlled.
    ceiling_floor : float
        Least noise ceiling that scores were divided by; 0: they were not.
    n_bootstrap : int
        Samples of the folds for the confidence in the best layer; 0: its choice was not looked into.
    """

    n_folds: int
    folds_by: str
    alpha_min: float
    alpha_max: float
    n_alphas: int
    q: float | None = None
    n_null: int = 0
    n_permutations: int = 0
    ceiling_floor: float = 0.0
    n_bootstrap: int = 0


@dataclass(frozen=True, slots=True)
class RsaFacts:
    """The representational similarity analysis.

    Parameters
    ----------
    comparisons : tuple of str
        ``pearson``, ``spearman``, ``rho-a`` ...
    metrics : tuple of str
        Distances between the patterns of regions; two (``crossnobis`` and ``correlation``) where it depends on the
        data which, and the data are several or not known yet.
    layer_metric : str
        Distance between the patterns of layers.
    tested : tuple of str
        Comparison that p values and intervals are of, for each of `metrics`.
    n_permutations, n_bootstraps : int
        Behind the p values and the intervals; 0: there are none.
    """

    comparisons: tuple[str, ...]
    metrics: tuple[str, ...] = ("correlation",)
    layer_metric: str = "correlation"
    tested: tuple[str, ...] = ()
    n_permutations: int = 0
    n_bootstraps: int = 0


@dataclass(frozen=True, slots=True)
class SearchlightFacts:
    """Searchlights: their radius in mm, how they are compared with layers, and how many permutations there were."""

    radius: float
    comparison: str
    n_permutations: int = 0


@dataclass(frozen=True, slots=True)
class DecodingFacts:
    """What was decoded, by what (of categories, of numbers), and how it was tested."""

    attributes: tuple[str, ...]
    classifier: str
    regressor: str
    n_folds: int
    n_permutations: int = 0


@dataclass(frozen=True, slots=True)
class MethodsFacts:
    """What the methods text is written from; what is not known (None, empty) is not mentioned.

    Parameters
    ----------
    version : str
        Of this app.
    tasks, spaces : tuple of str
        Labels.
    n_runs, n_trials, n_stimuli : int, optional
        Of the participant.
    fmriprep : str, optional
        Version; an empty string where it is not known which.
    networks : tuple of NetworkFacts
        Those used.
    responses, encoding, rsa : optional
        None: not done.
    atlas : str
        Name of the atlas.
    regions : mapping of str to str
        Region and, where it is a union, its definition.
    surfaces : tuple of str
        Names of the meshes drawn.
    software : mapping of str to str
        Package and version: numpy, nibabel, nilearn, torch ... Those known here are cited.
    seed : int, optional
        Of the random numbers.
    trial_filter : str
        Condition on the columns of the events that trials fulfil; empty: none.
    """

    version: str
    tasks: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    n_runs: int | None = None
    n_trials: int | None = None
    n_stimuli: int | None = None
    fmriprep: str | None = None
    networks: tuple[NetworkFacts, ...] = ()
    responses: ResponseFacts | None = None
    encoding: EncodingFacts | None = None
    rsa: RsaFacts | None = None
    searchlight: SearchlightFacts | None = None
    decoding: DecodingFacts | None = None
    atlas: str = ""
    regions: Mapping[str, str] = field(default_factory=dict)
    surfaces: tuple[str, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    trial_filter: str = ""
