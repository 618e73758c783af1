"""Which analyses to run, and how."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """Ridge regression from a layer's activations to each voxel's responses."""

    n_folds: int = field(
        default=10, metadata={"doc": "Folds of the outer cross-validation; no stimulus is ever in two."}
    )
    folds_by: str = field(
        default="stimulus",
        metadata={"doc": "Keep together in a fold: stimulus, run, session, or the values of a column of stimuli.tsv."},
    )
    alpha_min: float = field(
        default=1e-5, metadata={"doc": "Smallest ridge penalty, in units of the training kernel's mean eigenvalue."}
    )
    alpha_max: float = field(default=1e5, metadata={"doc": "Largest ridge penalty, in the same units."})
    n_alphas: int = field(default=21, metadata={"doc": "Penalties on the logarithmic grid; each voxel gets its own."})
    n_null: int = field(
        default=50_000,
        metadata={"doc": "Voxels with permuted stimuli that make the chance distribution of all p values."},
    )
    n_permutations: int = field(
        default=0,
        metadata={
            "doc": "Permutations of all voxels for the family-wise error rate; 19 or more to find anything at .05, 100 "
            "to find most. Each takes as long as scoring the data."
        },
    )
    n_bootstrap: int = field(
        default=1000, metadata={"doc": "Bootstrap samples of the folds for the confidence in a voxel's best layer."}
    )
    ceiling_floor: float = field(
        default=0.05,
        metadata={"doc": "Scores are divided by the noise ceiling where it is this share of the variance or more."},
    )


@dataclass(frozen=True, slots=True)
class BandedOptions(EncodingOptions):
    """Ridge regression from several feature spaces at once, each with a penalty of its own."""

    n_mixtures: int = field(
        default=100,
        metadata={"doc": "Random mixtures of feature spaces to try; each takes as long as a layer."},
    )


@dataclass(frozen=True, slots=True)
class RsaOptions:
    """Representational similarity analysis of regions."""

    metric: str = field(
        default="correlation",
        metadata={
            "doc": "Distances between response patterns. auto: crossnobis where each stimulus is in two runs or more, "
            "otherwise correlation.",
            "choices": ("auto", "correlation", "cosine", "sqeuclidean", "mahalanobis", "crossnobis"),
        },
    )
    layer_metric: str = field(
        default="correlation",
        metadata={
            "doc": "Distances between the activation patterns of a layer.",
            "choices": ("correlation", "cosine", "sqeuclidean"),
        },
    )
    comparisons: tuple[str, ...] = field(
        default=("pearson", "spearman", "rho-a"),
        metadata={
            "doc": "How two RDMs are compared: whitened-cosine suits crossnobis distances, rho-a others.",
            "choices": (
                "pearson",
                "spearman",
                "rho-a",
                "tau-a",
                "cosine",
                "whitened-cosine",
                "whitened-pearson",
                "cka",
            ),
        },
    )
    n_permutations: int = field(
        default=1000, metadata={"doc": "Permutations of the stimuli for p values of similarities; or 0."}
    )
    n_bootstraps: int = field(
        default=200, metadata={"doc": "Samples of the stimuli for intervals of similarities; or 0."}
    )


@dataclass(frozen=True, slots=True)
class SearchlightOptions:
    """Representational similarity of layers and the neighbourhood of each voxel."""

    radius: float = field(
        default=10.0, metadata={"doc": "Radius in mm: in a straight line in a volume, along the surface on a surface."}
    )
    comparison: str = field(
        default="cka",
        metadata={
            "doc": "How RDMs are compared; cka and whitened-cosine are fast however many the stimuli.",
            "choices": ("cka", "whitened-cosine", "pearson", "spearman", "rho-a"),
        },
    )
    n_permutations: int = field(
        default=1000, metadata={"doc": "Permutations of the stimuli for p values, also corrected over the brain; or 0."}
    )


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """What stimuli are like, told from responses to them (or from activations)."""

    attributes: tuple[str, ...] = field(
        default=(), metadata={"doc": "Columns of stimuli.tsv to decode; those of numbers as numbers."}
    )
    classifier: str = field(
        default="svc",
        metadata={
            "doc": "For categories: linear support vector machine, logistic regression, or discriminant analysis.",
            "choices": ("svc", "logistic", "lda"),
        },
    )
    regressor: str = field(
        default="ridge",
        metadata={"doc": "For numbers.", "choices": ("ridge", "lasso", "ols")},
    )
    scaling: str = field(
        default="common",
        metadata={
            "doc": "Divide voxels by what they have in common, so that those with little signal stay small, or each by "
            "its own standard deviation.",
            "choices": ("common", "each"),
        },
    )
    n_components: int = field(
        default=0, metadata={"doc": "Principal components, found in the training folds, to decode from; 0 for all."}
    )
    n_folds: int = field(default=10, metadata={"doc": "Folds; categories are divided evenly among them."})
    folds_by: str = field(
        default="stimulus",
        metadata={"doc": "Keep together in a fold: stimulus, run, session, or the values of a column of stimuli.tsv."},
    )
    n_permutations: int = field(
        default=200,
        metadata={
            "doc": "Permutations of the attribute for chance and p values; or 0. Each takes as long as decoding."
        },
    )
