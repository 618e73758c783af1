"""The methods section: what was done, in the past tense, with the numbers, and nothing that was not done."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dnnbrain_app.reports.references import HCP_ACKNOWLEDGMENT, REFERENCES, Reference, find_network_reference


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
    """

    name: str
    weights: str = ""
    layers: tuple[str, ...] = ()
    transform: str = ""
    source: str = ""
    precision: str = "float32"
    reduction: tuple[str, ...] = ()
    projection: int = 0


@dataclass(frozen=True, slots=True)
class ResponseFacts:
    """The general linear model; fields as in the responses' options.

    Parameters
    ----------
    model, hrf, scaling, noise_model : str
        ``lss`` or ``condition``; ``glover`` or ``spm``; ``zscore``, ``percent`` or ``none``; ``ar1`` or ``ols``.
    motion, compcor : int
        Number of regressors.
    spikes : bool
        Whether outlier volumes had regressors of their own.
    high_pass : float, optional
        Longest period kept, s, of the drifts made by the app.
    drifts_from_confounds : bool, optional
        True where the cosine regressors of the confounds file were used instead; None: not known yet.
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
    """

    n_folds: int
    folds_by: str
    alpha_min: float
    alpha_max: float
    n_alphas: int
    q: float | None = None
    n_null: int = 0


@dataclass(frozen=True, slots=True)
class RsaFacts:
    """The representational similarity analysis.

    Parameters
    ----------
    comparisons : tuple of str
        ``pearson``, ``spearman``, ``rho-a``.
    metric : str
        Of the RDMs.
    """

    comparisons: tuple[str, ...]
    metric: str = "correlation"


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
    atlas: str = ""
    regions: Mapping[str, str] = field(default_factory=dict)
    surfaces: tuple[str, ...] = ()
    software: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Methods:
    """A methods section.

    Parameters
    ----------
    paragraphs : tuple of (str, str)
        Heading and plain text.
    references : tuple of Reference
        Cited in the paragraphs, in alphabetical order.
    """

    paragraphs: tuple[tuple[str, str], ...]
    references: tuple[Reference, ...]


Cite = Callable[..., str]
_NOISE_MODELS = {
    "ar1": "Noise was modelled as a first-order autoregressive process with one coefficient a voxel, and data and "
    "design were whitened with it.",
    "ols": "Noise was taken as white.",
}
_SCALINGS = {
    "zscore": "Responses were expressed in standard deviations of the voxel over the run.",
    "percent": "Responses were expressed in percent of the voxel's mean over the run.",
    "none": "Responses were left in the units of the data.",
}


def describe_methods(facts: MethodsFacts) -> Methods:
    """Write the paragraphs of the methods section and collect what they cite."""
    cited: dict[str, Reference] = {}

    def cite(*works: str | Reference) -> str:
        found = [REFERENCES[work] if isinstance(work, str) else work for work in works]
        cited.update({reference.full: reference for reference in found})
        return f"({'; '.join(reference.short for reference in found)})"

    writers: tuple[tuple[str, Callable[[MethodsFacts, Cite], list[str]]], ...] = (
        ("Data", _describe_data),
        ("Networks", _describe_networks),
        ("Responses", _describe_responses),
        ("Regions of interest", _describe_regions),
        ("Encoding models", _describe_encoding),
        ("Representational similarity analysis", _describe_rsa),
        ("Software", _describe_software),
    )
    written = [(heading, " ".join(write(facts, cite))) for heading, write in writers]
    references = sorted(cited.values(), key=lambda reference: reference.full.casefold())
    return Methods(tuple((heading, text) for heading, text in written if text), tuple(references))


def write_methods(facts: MethodsFacts) -> str:
    """Write the methods section as Markdown, ready to paste into a paper.

    Parameters
    ----------
    facts : MethodsFacts
        What was done; before anything is (``--boilerplate-only``) much of it may be unknown.

    Returns
    -------
    str
        Headings, paragraphs and references.
    """
    methods = describe_methods(facts)
    blocks = ["# Methods"]
    for heading, text in methods.paragraphs:
        blocks += [f"## {heading}", _escape_markdown(text)]
    blocks += ["## References", "\n".join(f"- {_escape_markdown(r.full)} <{r.link}>" for r in methods.references)]
    return "\n\n".join(blocks) + "\n"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)


def _describe_data(facts: MethodsFacts, cite: Cite) -> list[str]:
    said = [
        (
            f"Results were obtained with dnnbrain {facts.version}, a BIDS App {cite('bidsapps')} that maps deep neural "
            f"networks to brains and re-builds the DNNBrain toolbox {cite('dnnbrain')}. "
            f"Data were organised in the Brain Imaging Data Structure {cite('bids')}."
        )
    ]
    if facts.fmriprep is not None:
        said.append(f"They had been preprocessed with {f'fMRIPrep {facts.fmriprep}'.strip()} {cite('fmriprep')}.")
    if facts.tasks:
        said.append(f"Runs of the {_plural('task', facts.tasks)} {_enumerate(facts.tasks)} were analysed.")
    if facts.spaces:
        said.append(f"The data were in the {_plural('space', facts.spaces)} {_enumerate(facts.spaces)}.")
    counts = [(facts.n_runs, "run"), (facts.n_trials, "trial"), (facts.n_stimuli, "distinct stimulus")]
    known = [_count(n, noun) for n, noun in counts if n is not None]
    return [*said, f"There were {_enumerate(known)}."] if known else said


def _describe_networks(facts: MethodsFacts, cite: Cite) -> list[str]:
    if not facts.networks:
        return []
    package = cite("torch")
    said = []
    for network in facts.networks:
        paper = find_network_reference(network.name)
        works = [*([paper] if paper else []), *(["torchvision"] if network.source == "torchvision" else [])]
        sentence = f"Every stimulus was shown to {network.name}" + (f" {cite(*works)}" if works else "")
        sentence += f" with the weights {network.weights}" if network.weights else ""
        if network.layers:
            named = f"{_count(len(network.layers), 'layer')} ({_enumerate(network.layers)})"
            sentence += f", and the activations of {named} were recorded"
        said.append(sentence + ".")
        if network.transform:
            said.append(f"Images were prepared as follows: {network.transform.rstrip('.')}.")
        said += _describe_reduction(network, cite)
    whole = not any(network.reduction or network.projection for network in facts.networks)
    units = (
        "all units of a layer entered the analyses, without a reduction of their number,"
        if whole
        else "what was kept entered the analyses"
    )
    said.append(f"The networks ran in PyTorch {package}; {units} through the inner products between stimuli.")
    return said


def _describe_reduction(network: NetworkFacts, cite: Cite) -> list[str]:
    """Say what was kept of a network's activations where it is not all of them."""
    said = []
    if network.precision != "float32":
        said.append(f"The forward pass was computed in {network.precision}.")
    if network.reduction:
        said.append(f"Of the units, these were kept: {'; '.join(network.reduction)}.")
    if network.projection:
        said.append(
            f"Layers of more than {network.projection} units were projected to so many dimensions by a very sparse "
            f"random projection {cite('projection')}."
        )
    return said


def _describe_responses(facts: MethodsFacts, cite: Cite) -> list[str]:
    model = facts.responses
    if model is None:
        return []
    hrf = (
        f"Glover's haemodynamic response function {cite('glover')}"
        if model.hrf == "glover"
        else "the haemodynamic response function of SPM"
    )
    kinds = {
        "lss": "Responses to single trials were estimated by least squares, separately for each trial "
        f"{'' if model.model != 'lss' else cite('lss')}: the model of a trial had one regressor for it and one for all "
        "other trials of its run. Responses to repeated presentations of a stimulus were averaged.",
        "condition": "One response a stimulus was estimated by least squares over all runs, with one regressor for "
        "each stimulus.",
    }
    said = [kinds.get(model.model, f"Responses were estimated with the model {model.model}.")]
    said.append(f"Trials were convolved with {hrf} and sampled at the time that each volume represents.")
    nuisance = ["a constant for each run"]
    if model.motion:
        nuisance.append(f"{model.motion} motion regressors" + (f" {cite('friston24')}" if model.motion == 24 else ""))
    if model.compcor:
        nuisance.append(f"the first {model.compcor} anatomical CompCor components {cite('compcor')}")
    if model.drifts_from_confounds:
        nuisance.append("the cosine drifts of the preprocessing")
    elif model.drifts_from_confounds is False and model.high_pass:
        nuisance.append(f"cosine drifts with periods of {model.high_pass:g} s and longer")
    if model.spikes:
        nuisance.append("one regressor for each non-steady-state and each motion-outlier volume")
    said.append(f"The nuisance regressors were {_enumerate(nuisance)}.")
    said.append(_NOISE_MODELS[model.noise_model])
    said.append(_SCALINGS[model.scaling])
    return said


def _describe_regions(facts: MethodsFacts, cite: Cite) -> list[str]:
    if not facts.atlas:
        return []
    is_mmp = bool(re.search(r"mmp|glasser", facts.atlas, re.IGNORECASE))
    said = [f"Regions were taken from the atlas {facts.atlas}" + (f" {cite('mmp')}" if is_mmp else "") + "."]
    unions = [f"{name} ({definition})" for name, definition in facts.regions.items() if definition]
    if unions:
        said.append(f"Unions of its labels were formed: {_enumerate(unions)}.")
    return said


def _describe_encoding(facts: MethodsFacts, cite: Cite) -> list[str]:
    model = facts.encoding
    if model is None:
        return []
    kept = {"stimulus": "no stimulus was ever in two folds"}.get(
        model.folds_by, f"stimuli that share a {model.folds_by} were kept in one fold"
    )
    said = [
        "For each layer, the responses of each voxel were predicted from the layer's activations by ridge regression.",
        f"Predictions were made for held-out stimuli in {model.n_folds}-fold cross-validation; {kept}.",
        (
            "Within each training set, a penalty was chosen for each voxel by generalised cross-validation "
            f"{cite('gcv')} from {model.n_alphas} values, logarithmically spaced from {_power(model.alpha_min)} to "
            f"{_power(model.alpha_max)} times the mean eigenvalue of the training kernel."
        ),
        (
            "The score was the Pearson correlation between predicted and measured responses, averaged over folds; the "
            "coefficient of determination was computed as well."
        ),
    ]
    if model.q is not None:
        said.append(
            "Maps of the best layer show the layer with the highest score, where that score was significant: p values "
            f"came from the highest scores of {model.n_null} voxels with permuted stimuli that passed through the same "
            f"folds, and were corrected over voxels at a false discovery rate of {model.q:g} {cite('fdr')}."
        )
    return said


def _describe_rsa(facts: MethodsFacts, cite: Cite) -> list[str]:
    model = facts.rsa
    if model is None:
        return []
    names = {
        "pearson": "Pearson's correlation",
        "spearman": "Spearman's rank correlation",
        "rho-a": "the rank correlation rho-a",
    }
    compared = [names.get(c, c) + (f" {cite('rhoa')}" if c == "rho-a" else "") for c in model.comparisons]
    return [
        (
            "Representational dissimilarity matrices (RDMs) of regions and layers were computed with the "
            f"{model.metric} distance between all pairs of stimuli, and compared {cite('rsa')} by "
            f"{_enumerate(compared)}."
        )
    ]


def _describe_software(facts: MethodsFacts, cite: Cite) -> list[str]:
    listed = [
        f"{name} {version}" + (f" {cite(name)}" if name in ("nilearn", "nibabel", "torch", "torchvision") else "")
        for name, version in sorted(facts.software.items(), key=lambda item: item[0].casefold())
    ]
    said = [f"The software used was {_enumerate(listed)}."] if listed else []
    if facts.seed is not None:
        said.append(f"Random numbers were seeded with {facts.seed}.")
    hcp = any(re.search(r"mmp|glasser", name, re.IGNORECASE) for name in (facts.atlas,)) or any(
        re.search(r"hcp|fslr", name, re.IGNORECASE) for name in facts.surfaces
    )
    return [*said, HCP_ACKNOWLEDGMENT] if hcp else said


def _enumerate(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))


def _count(n: int, noun: str) -> str:
    plural = noun[:-2] + "i" if noun.endswith("us") else noun + "s"
    return f"{n:,} {noun if n == 1 else plural}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _power(value: float) -> str:
    return re.sub(
        r"e([+-])0*(\d)",
        lambda found: f"e{found[1].strip('+')}{found[2]}",
        f"{value:.3g}" if 0.001 < value < 1000 else f"{value:.0e}",
    )


def _plural(noun: str, items: Sequence[str]) -> str:
    return noun if len(items) == 1 else noun + "s"
