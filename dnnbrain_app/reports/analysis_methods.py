"""What the methods text says about the analyses: what was fitted and compared, and how it was told from chance."""

from __future__ import annotations

from dnnbrain_app.reports.facts import EncodingFacts, MethodsFacts, RsaFacts
from dnnbrain_app.reports.wording import Cite, enumerate_phrases, write_power

_COMPARISONS = {  # in words, and the works to cite
    "pearson": ("Pearson's correlation", ()),
    "spearman": ("Spearman's rank correlation", ()),
    "rho-a": ("the rank correlation rho-a", ("rhoa",)),
    "tau-a": ("Kendall's rank correlation tau-a", ("tau",)),
    "cosine": ("the cosine", ()),
    "whitened-cosine": ("the whitened cosine", ("whitened",)),
    "whitened-pearson": ("the whitened correlation", ("whitened",)),
    "cka": ("linear centred kernel alignment without its bias", ("cka", "debiased")),
}
_DISTANCES = {
    "correlation": "the correlation distance",
    "cosine": "the cosine distance",
    "sqeuclidean": "the squared Euclidean distance",
    "mahalanobis": "the squared Mahalanobis distance",
    "crossnobis": "the crossnobis distance",
}


def describe_encoding(facts: MethodsFacts, cite: Cite) -> list[str]:
    """Write the sentences on encoding models; `cite` notes what they rest on."""
    model = facts.encoding
    if model is None:
        return []
    is_timeseries = facts.responses is not None and facts.responses.model == "timeseries"
    data, features = ("volumes", "convolved activations") if is_timeseries else ("responses", "activations")
    kept = "no stimulus was ever in two folds"
    if model.folds_by != "stimulus":
        kept = f"stimuli that share a {model.folds_by} were kept in one fold"
    held_out = "stimuli"
    if is_timeseries:
        held_out, kept = "runs", "runs that show the same stimuli were kept in one fold"
        if facts.n_runs == 1:
            held_out, kept = "parts of the run", "the 20 s between two parts were left out"
    said = [
        f"For each layer, the {data} of each voxel were predicted from the layer's {features} by ridge regression.",
        f"Predictions were made for held-out {held_out} in {model.n_folds}-fold cross-validation; {kept}.",
        (
            "Within each training set, a penalty was chosen for each voxel by generalised cross-validation "
            f"{cite('gcv')} from {model.n_alphas} values, logarithmically spaced from {write_power(model.alpha_min)} "
            f"to {write_power(model.alpha_max)} times the mean eigenvalue of the training kernel."
        ),
        (
            f"The score was the Pearson correlation between predicted and measured {data}, averaged over folds; the "
            "coefficient of determination was computed as well."
        ),
    ]
    if model.q is not None:
        changed, orders = "with permuted stimuli that", "permutations"
        if is_timeseries:
            changed, orders = "whose runs had been shifted in time, the end coming first, and that", "such shifts"
        said += _describe_chance(model, model.q, changed, orders, cite)
    if model.ceiling_floor:
        said.append(
            "Scores were also divided by the noise ceiling, correlations by its root, in voxels where it is "
            f"{model.ceiling_floor:g} or more of the variance."
        )
    return said + _describe_choice(model)


def _describe_chance(model: EncodingFacts, q: float, changed: str, orders: str, cite: Cite) -> list[str]:
    """Say how scores were told from chance."""
    said = [
        (
            f"The scores of {model.n_null} voxels {changed} passed through the same folds gave the p values of each "
            f"layer's scores, which were corrected over voxels by the false discovery rate {cite('fdr')}."
        )
    ]
    if model.n_permutations:
        said.append(
            "For the family-wise error rate, each layer's scores were compared with the highest of all voxels in "
            f"{model.n_permutations} {orders} that all voxels had in common {cite('maximum')}."
        )
    said.append(
        "Maps of the best layer show the layer with the highest score, where that score was significant at a false "
        f"discovery rate of {q:g}: its p values came from the highest scores over layers of the same "
        f"{model.n_null} voxels."
    )
    return said


def _describe_choice(model: EncodingFacts) -> list[str]:
    """Say what else was learnt about the best layer."""
    if not model.n_bootstrap:
        return []
    return [
        (
            "As the highest of several scores is too high by chance, the best layer was also scored in each half of "
            "the folds after its choice by cross-validation within the other half."
        ),
        (
            f"The confidence in a voxel's best layer is the share of {model.n_bootstrap} bootstrap samples of the "
            "folds in which it was best; the depth of a voxel is the mean of the layers' numbers, weighted by their "
            "scores."
        ),
    ]


def describe_rsa(facts: MethodsFacts, cite: Cite) -> list[str]:
    """Write the sentences on representational similarity analysis; `cite` notes what they rest on."""
    model = facts.rsa
    if model is None:
        return []
    compared = enumerate_phrases([_name_comparison(name, cite) for name in model.comparisons])
    matrices = "Representational dissimilarity matrices (RDMs)"
    if model.metrics == (model.layer_metric,):
        said = [
            (
                f"{matrices} of regions and layers were computed with {_DISTANCES[model.layer_metric]} between all "
                f"pairs of stimuli, and compared {cite('rsa')} by {compared}."
            )
        ]
    else:
        said = [
            f"{matrices} of regions were computed with {_name_distances(model, cite)} between all pairs of stimuli.",
            *_describe_distances(model, cite),
            (
                f"RDMs of layers, with {_DISTANCES[model.layer_metric]} between activations, were compared with them "
                f"{cite('rsa')} by {compared}."
            ),
        ]
    return said + _describe_tests(model, cite)


def describe_searchlight(facts: MethodsFacts, cite: Cite) -> list[str]:
    """Write the sentences on searchlights."""
    model = facts.searchlight
    if model is None:
        return []
    distances = _DISTANCES["sqeuclidean" if model.comparison in ("cka", "whitened-cosine") else "correlation"]
    said = [
        (
            f"Around each voxel or vertex, those within {model.radius:g} mm (along the surface on the cortex) made a "
            f"searchlight {cite('searchlight')}, whose RDM of {distances} was "
            f"compared with that of each layer by {_name_comparison(model.comparison, cite)}."
        )
    ]
    if model.n_permutations:
        said.append(
            f"P values came from {model.n_permutations} permutations of the stimuli, the same for all layers and "
            "searchlights; they were adjusted over searchlights for a false discovery rate, and by the highest "
            "similarity of any layer and searchlight for the family-wise error rate."
        )
    return said


def describe_decoding(facts: MethodsFacts, cite: Cite) -> list[str]:  # noqa: ARG001
    """Write the sentences on decoding."""
    model = facts.decoding
    if model is None:
        return []
    decoders = {
        "svc": "linear support vector machines",
        "logistic": "logistic regression",
        "lda": "linear discriminant analysis",
        "ridge": "ridge regression",
        "lasso": "the lasso",
        "ols": "ordinary least squares",
    }
    said = [
        (
            f"The {enumerate_phrases([f'attribute {name}' for name in model.attributes])} of the stimuli "
            f"{'was' if len(model.attributes) == 1 else 'were'} predicted from the responses of each region, averaged "
            f"over repeats, by {decoders[model.classifier]} (categories) or {decoders[model.regressor]} (numbers) in "
            f"{model.n_folds}-fold cross-validation over stimuli, scaling being fitted to the training folds."
        )
    ]
    if model.n_permutations:
        said.append(f"Chance and p values came from {model.n_permutations} permutations of the attribute.")
    return said


def _name_comparison(name: str, cite: Cite) -> str:
    words, works = _COMPARISONS[name]
    return f"{words} {cite(*works)}" if works else words


def _name_distances(model: RsaFacts, cite: Cite) -> str:
    named = [
        _DISTANCES[metric] + (f" {cite('crossnobis')}" if metric == "crossnobis" else "") for metric in model.metrics
    ]
    return named[0] if len(named) == 1 else f"{named[0]} where each stimulus was in two runs, else {named[1]},"


def _describe_distances(model: RsaFacts, cite: Cite) -> list[str]:
    """Say how distances allow for noise, where they do."""
    said = []
    if "crossnobis" in model.metrics:
        said.append(
            "The crossnobis distance is the squared Mahalanobis distance from products of responses in different runs, "
            "to which noise adds nothing on average."
        )
    if {"crossnobis", "mahalanobis"} & set(model.metrics):
        said.append(
            "The covariance of the noise of the region's voxels was estimated from how single trials of a stimulus "
            f"differ, and shrunk towards its diagonal {cite('shrinkage')}."
        )
    return said


def _describe_tests(model: RsaFacts, cite: Cite) -> list[str]:
    """Say how similarities were told from chance, and how exact they are."""
    names = [_COMPARISONS[name][0] for name in model.tested]
    tested = names[0] if len(names) == 1 else f"{' or '.join(names)}, whichever suits the distances,"
    said = []
    if model.n_permutations:
        said.append(
            f"The similarities by {tested} were compared with those after {model.n_permutations} permutations of the "
            "stimuli, the same for all layers and regions. P values were corrected for the number of layers by the "
            f"maximum over layers of the standardised similarities {cite('maximum')}, and from these over regions by "
            f"the false discovery rate {cite('fdr')}."
        )
    if model.n_bootstraps:
        these = "these similarities" if model.n_permutations else f"the similarities by {tested}"
        said.append(
            f"The 95 % confidence intervals of {these} come from {model.n_bootstraps} bootstrap samples of the stimuli "
            f"{cite('rhoa')}."
        )
    return said
