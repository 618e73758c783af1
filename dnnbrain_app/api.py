"""The science for notebooks: documented functions on arrays, the same that the command line runs.

>>> from dnnbrain_app import api
>>> folds = api.make_folds(96, 8, rng=np.random.default_rng(0))
>>> sorted(map(len, folds)) == [12] * 8
True

Arrays carry the equations' letters: ``Y`` (n_stimuli, n_voxels) responses, ``X`` (n_stimuli, n_features) features,
``K`` (n_stimuli, n_stimuli) inner products. A layer is a `Gram`: `make_gram` makes one of features.
"""

from __future__ import annotations

import numpy as np

from dnnbrain_app.analyses.balancing import make_balanced_folds
from dnnbrain_app.analyses.banded import BandedScores, score_bands
from dnnbrain_app.analyses.ceilings import Ceiling, compute_ceiling
from dnnbrain_app.analyses.combining import CombinedScores, score_combined
from dnnbrain_app.analyses.crossnobis import compute_crossnobis, compute_mahalanobis
from dnnbrain_app.analyses.decoding import DecodingScores, decode_attribute
from dnnbrain_app.analyses.decoding_searchlights import decode_searchlights
from dnnbrain_app.analyses.encoding import score_encoding
from dnnbrain_app.analyses.estimators import divide_layer, make_pipeline, make_regressor, score_estimator
from dnnbrain_app.analyses.folds import group_stimuli, make_folds, make_volume_folds
from dnnbrain_app.analyses.identification import IdentificationScores, identify_stimuli
from dnnbrain_app.analyses.layer_choice import LayerChoice, choose_layers
from dnnbrain_app.analyses.neighbourhoods import Neighbourhoods, find_neighbourhoods
from dnnbrain_app.analyses.normalising import normalise_mean, normalise_scores
from dnnbrain_app.analyses.options import BandedOptions, EncodingOptions, SearchlightOptions
from dnnbrain_app.analyses.partition import VariancePartition, partition_variance
from dnnbrain_app.analyses.rdms import compute_attribute_rdm, compute_layer_rdm, compute_rdm
from dnnbrain_app.analyses.rsa import compare_rdms, score_rsa
from dnnbrain_app.analyses.rsa_inference import RsaSignificance, permute_labels
from dnnbrain_app.analyses.rsa_intervals import RsaIntervals, bootstrap_both, bootstrap_stimuli
from dnnbrain_app.analyses.searchlight import SearchlightScores, score_searchlight
from dnnbrain_app.analyses.stacking import StackedScores, stack_layers
from dnnbrain_app.records import Array, EncodingScores, Gram, Rdm, RsaScores, Significance, Trials
from dnnbrain_app.responses.glm import average_repeats, estimate_betas
from dnnbrain_app.responses.glmsingle import SingleTrials, estimate_glmsingle
from dnnbrain_app.responses.options import ResponseOptions
from dnnbrain_app.responses.reliability import (
    NoiseCeiling,
    compare_participants,
    correlate_halves,
    estimate_noise_ceiling,
)
from dnnbrain_app.responses.runs import RunData
from dnnbrain_app.responses.timeseries import TimeSeries, build_timeseries, convolve_features, convolve_gram

__all__ = [
    "BandedOptions",
    "BandedScores",
    "Ceiling",
    "CombinedScores",
    "DecodingScores",
    "EncodingOptions",
    "EncodingScores",
    "Gram",
    "IdentificationScores",
    "LayerChoice",
    "Neighbourhoods",
    "NoiseCeiling",
    "Rdm",
    "ResponseOptions",
    "RsaIntervals",
    "RsaScores",
    "RsaSignificance",
    "RunData",
    "SearchlightOptions",
    "SearchlightScores",
    "Significance",
    "SingleTrials",
    "StackedScores",
    "TimeSeries",
    "Trials",
    "VariancePartition",
    "average_repeats",
    "bootstrap_both",
    "bootstrap_stimuli",
    "build_timeseries",
    "choose_layers",
    "compare_participants",
    "compare_rdms",
    "compute_attribute_rdm",
    "compute_ceiling",
    "compute_crossnobis",
    "compute_layer_rdm",
    "compute_mahalanobis",
    "compute_rdm",
    "convolve_features",
    "convolve_gram",
    "correlate_halves",
    "decode_attribute",
    "decode_searchlights",
    "divide_layer",
    "estimate_betas",
    "estimate_glmsingle",
    "estimate_noise_ceiling",
    "find_neighbourhoods",
    "group_stimuli",
    "identify_stimuli",
    "make_balanced_folds",
    "make_folds",
    "make_gram",
    "make_pipeline",
    "make_regressor",
    "make_volume_folds",
    "normalise_mean",
    "normalise_scores",
    "partition_variance",
    "permute_labels",
    "score_bands",
    "score_combined",
    "score_encoding",
    "score_estimator",
    "score_rsa",
    "score_searchlight",
    "stack_layers",
]


def make_gram(X: Array, layer: str = "features", depth: int = 1) -> Gram:
    r"""Make a layer of features, :math:`K = X X^\top`.

    Parameters
    ----------
    X : array of shape (n_stimuli, n_features)
        Features, such as the flattened activations of a layer.
    layer : str
        Its name.
    depth : int
        Its place in the network, from 1.

    Examples
    --------
    >>> make_gram(np.ones((4, 3))).K.shape
    (4, 4)
    """
    X = np.asarray(X, dtype=np.float64)
    return Gram(layer, (X.shape[1],), depth, X @ X.T, X.sum(axis=1), X)
