"""Which analyses there are, which of them a run does, and what their results depend on.

An analysis takes responses and activations, calls one piece of science, writes what came out, and returns the files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dnnbrain_app import __version__
from dnnbrain_app.activations import identify_features
from dnnbrain_app.config import Config
from dnnbrain_app.dataset.atlases import list_atlas_files
from dnnbrain_app.decoding_stage import run_decoding
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.encoding_stage import run_encoding
from dnnbrain_app.errors import MissingInputError, UsageError
from dnnbrain_app.records import Activations, StimulusSet
from dnnbrain_app.response_stages import Responses
from dnnbrain_app.rsa_stage import run_rsa
from dnnbrain_app.searchlight_stage import run_searchlight
from dnnbrain_app.session import Session

# Rooms that import torch or scikit-learn are imported where they are used: a run that finds all its results there
# must not wait for them.

logger = logging.getLogger(__name__)


def choose_analyses(config: Config) -> tuple[str, ...]:
    """Name the analyses to run: as asked; else encoding, and RSA where there are regions with responses to stimuli."""
    has_patterns = config.dataset.atlas and config.responses.model != "timeseries"
    return config.run.analyses or (("encoding", "rsa") if has_patterns else ("encoding",))


def check_analyses(config: Config) -> None:
    """Refuse what cannot be computed or written, before anything is."""
    atlases = config.dataset.atlas
    others = [name for name in choose_analyses(config) if name != "encoding"]
    if others and config.responses.model == "timeseries":
        raise UsageError(
            f"--analysis {' '.join(others)} needs responses to stimuli; --response-model timeseries estimates none"
        )
    if "decoding" in others and not config.decoding.attributes:
        raise UsageError("--analysis decoding needs --attribute NAME, a column of stimuli.tsv")
    if "rsa" in choose_analyses(config) and not atlases:
        raise UsageError("--analysis rsa compares regions of the brain; name an atlas with --atlas")
    for path in atlases:
        if not path.exists():
            raise MissingInputError(f"--atlas {path}: does not exist")
    check_networks(config.networks.names)


def check_networks(networks: Sequence[str]) -> None:
    """Refuse two networks whose results would have the same names."""
    labels: dict[str, str] = {}
    for network in networks:
        other = labels.setdefault(names.label_network(network), network)
        if other != network:
            raise UsageError(
                f"networks {other!r} and {network!r} would write the same files; run them into two folders"
            )


def find_output(config: Config) -> Path:
    """Return the output dataset: OUTPUT_DIR, or a folder in it named by the settings, the same for all participants."""
    if config.run.output_layout == "bids":
        return config.output_dir
    dataset = replace(config.dataset, participants=())
    analyses = [config.encoding, config.rsa, config.searchlight, config.decoding]
    rooms = [config.networks, config.responses, *analyses, dataset, config.stimuli]
    return config.output_dir / f"dnnbrain-{digest_key([__version__, rooms, config.run.random_seed])[:8]}"


def key_analysis(name: str, network: str, responses: str, stimuli: StimulusSet, session: Session) -> str:
    """Digest all that an analysis of a network depends on; `responses` is the key of the betas."""
    config = session.config
    seen = [identify_features(network, stimuli, session), stimuli.ids, stimuli.digests]
    regions = [list(map(stamp, list_atlas_files(config.dataset.atlas))), config.dataset.rois]
    groups = list(stimuli.attributes.get(config.encoding.folds_by, ()))
    own = {"encoding": [config.encoding, groups], "rsa": [config.rsa], "searchlight": [config.searchlight]}
    chosen = [config.responses.min_reliability, config.run.random_seed]
    return digest_key([name, responses, chosen, seen, regions, own[name]])


def key_decoding(responses: str, stimuli: StimulusSet, session: Session) -> str:
    """Digest all that decoding depends on."""
    config = session.config
    regions = [list(map(stamp, list_atlas_files(config.dataset.atlas))), config.dataset.rois]
    values = {name: list(map(str, values)) for name, values in stimuli.attributes.items()}
    chosen = [config.decoding, config.responses.min_reliability, config.run.random_seed]
    return digest_key([responses, stimuli.ids, stimuli.digests, values, regions, chosen])


ANALYSES: dict[str, Callable[[Responses, Activations, Session], list[Path]]] = {  # of each network
    "encoding": run_encoding,
    "rsa": run_rsa,
    "searchlight": run_searchlight,
}
BRAIN_ANALYSES: dict[str, Callable[[Responses, Session], list[Path]]] = {"decoding": run_decoding}
