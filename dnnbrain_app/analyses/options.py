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


@dataclass(frozen=True, slots=True)
class RsaOptions:
    """Representational similarity analysis of regions."""

    comparisons: tuple[str, ...] = field(
        default=("pearson", "spearman", "rho-a"),
        metadata={"doc": "How two RDMs are compared.", "choices": ("pearson", "spearman", "rho-a")},
    )
