"""The methods section: what was done, in the past tense, with the numbers, and nothing that was not done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dnnbrain_app.reports.analysis_methods import (
    describe_decoding,
    describe_encoding,
    describe_rsa,
    describe_searchlight,
)
from dnnbrain_app.reports.facts import MethodsFacts, NetworkFacts, ResponseFacts
from dnnbrain_app.reports.references import HCP_ACKNOWLEDGMENT, REFERENCES, Reference, find_network_reference
from dnnbrain_app.reports.response_methods import describe_responses
from dnnbrain_app.reports.wording import Cite, choose_number, count_things, enumerate_phrases


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
        ("Responses", lambda facts, cite: describe_responses(facts.responses, cite) if facts.responses else []),
        ("Regions of interest", _describe_regions),
        ("Encoding models", describe_encoding),
        ("Representational similarity analysis", describe_rsa),
        ("Searchlights", describe_searchlight),
        ("Decoding", describe_decoding),
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
        said.append(f"Runs of the {choose_number('task', facts.tasks)} {enumerate_phrases(facts.tasks)} were analysed.")
    if facts.spaces:
        said.append(f"The data were in the {choose_number('space', facts.spaces)} {enumerate_phrases(facts.spaces)}.")
    if facts.trial_filter:
        said.append(f'Of the events, those with "{facts.trial_filter}" were trials.')
    counts = [(facts.n_runs, "run"), (facts.n_trials, "trial"), (facts.n_stimuli, "distinct stimulus")]
    known = [count_things(n, noun) for n, noun in counts if n is not None]
    return [*said, f"They comprised {enumerate_phrases(known)}."] if known else said


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
            named = f"{count_things(len(network.layers), 'layer')} ({enumerate_phrases(network.layers)})"
            sentence += f", and the activations of {named} were recorded"
        said.append(sentence + ".")
        if network.transform:
            said.append(f"Images were prepared as follows: {network.transform.rstrip('.')}.")
        said += _describe_videos(network, facts.responses)
        said += _describe_reduction(network, cite)
    whole = not any(network.reduction or network.projection for network in facts.networks)
    units = (
        "all units of a layer entered the analyses, without a reduction of their number,"
        if whole
        else "what was kept entered the analyses"
    )
    said.append(f"The networks ran in PyTorch {package}; {units} through the inner products between stimuli.")
    return said


def _describe_videos(network: NetworkFacts, responses: ResponseFacts | None) -> list[str]:
    """Say what a network saw of videos."""
    if network.clip_frames:
        return [f"Of each video it saw {network.clip_frames} frames, evenly spaced in time."]
    if not network.frame_rate:
        return []
    means = "its activations by a video were averaged over frames, weighted by their durations"
    if responses is not None and responses.model == "timeseries":
        means = "each frame was a stimulus, shown at its own time"
    shown = f"Of videos it saw {network.frame_rate:g} frames a second"
    return [f"{shown}, each the one on the screen in the middle of its part of the time; {means}."]


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


def _describe_regions(facts: MethodsFacts, cite: Cite) -> list[str]:
    if not facts.atlas:
        return []
    is_mmp = bool(re.search(r"mmp|glasser", facts.atlas, re.IGNORECASE))
    said = [f"Regions were taken from the atlas {facts.atlas}" + (f" {cite('mmp')}" if is_mmp else "") + "."]
    unions = [f"{name} ({definition})" for name, definition in facts.regions.items() if definition]
    if unions:
        said.append(f"Unions of its labels were formed: {enumerate_phrases(unions)}.")
    return said


def _describe_software(facts: MethodsFacts, cite: Cite) -> list[str]:
    listed = [
        f"{name} {version}" + (f" {cite(name)}" if name in ("nilearn", "nibabel", "torch", "torchvision") else "")
        for name, version in sorted(facts.software.items(), key=lambda item: item[0].casefold())
    ]
    said = [f"The software used was {enumerate_phrases(listed)}."] if listed else []
    if facts.seed is not None:
        said.append(f"Random numbers were seeded with {facts.seed}.")
    hcp = any(re.search(r"mmp|glasser", name, re.IGNORECASE) for name in (facts.atlas,)) or any(
        re.search(r"hcp|fslr", name, re.IGNORECASE) for name in facts.surfaces
    )
    return [*said, HCP_ACKNOWLEDGMENT] if hcp else said
