"""The stages of the stimulus level: what a network makes of a whole stimulus set, by itself.

`workflow` says in which order. A stage returns the files it wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dnnbrain_app.activations import FROM_FILE, find_or_compute, identify_features
from dnnbrain_app.config import Config
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.files import write_atomically
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.derivatives.matrices import write_rdms
from dnnbrain_app.derivatives.sidecars import describe_map, list_versions, make_uri
from dnnbrain_app.derivatives.tables import write_channel_tables
from dnnbrain_app.errors import MissingInputError, UsageError
from dnnbrain_app.inputs import gather_stimuli, require_two
from dnnbrain_app.records import Activations, StimulusSet
from dnnbrain_app.rsa_stage import gather_rdms
from dnnbrain_app.session import Session
from dnnbrain_app.stimuli.clips import read_frames
from dnnbrain_app.stimuli.stim_files import StimFile, list_stimuli, read_stim_file

logger = logging.getLogger(__name__)


def gather_listed(session: Session) -> StimulusSet:
    """Find the stimuli: those of ``--stimulus-file``, else all images and clips in the folder of the stimuli."""
    if session.config.stimuli.file is None:
        folder = find_folder(session.config)
        found = list_stimuli(folder)
        require_two(found, f"{folder} holds")
        return gather_stimuli(found, folder, session)
    listed = read_stim_file(session.config.stimuli.file, session.config.stimuli.directory)
    require_two(map(str, listed.names), f"{session.config.stimuli.file} lists")
    if listed.kind == "video":
        return gather_listed_frames(listed, session)
    return gather_stimuli(listed.names, listed.path, session, listed.table)


def gather_listed_frames(listed: StimFile, session: Session) -> StimulusSet:
    """Make images of the frames of a video that are listed; they lie in the work folder, named by their number."""
    if not listed.path.is_file():
        raise MissingInputError(
            f"--stimulus-file {session.config.stimuli.file}: its video {listed.path} does not exist"
        )
    folder = session.config.run.work_dir / "frames" / digest_key(stamp(listed.path))[:32]
    paths = {int(number): folder / f"{int(number):06d}.png" for number in listed.names}
    absent = [number for number, path in paths.items() if not path.exists()]
    for done, (number, image) in enumerate(read_frames(listed.path, absent), 1):
        write_atomically(paths[number], image.save)
        session.progress("stimuli: frames", done, len(absent))
    names_of_files = [path.name for path in paths.values()]
    return gather_stimuli(names_of_files, folder, session, listed.table.assign(stimID=names_of_files))


def find_folder(config: Config) -> Path:
    """Return the folder to look into: BIDS_DIR itself where it has no folder of stimuli, as no dataset is needed."""
    inside = config.bids_dir / "stimuli"
    return config.stimuli.directory or (inside if inside.is_dir() else config.bids_dir)


def list_stimulus_names(config: Config) -> Sequence[str]:
    """Name the stimuli without opening them."""
    if config.stimuli.file is not None:
        return read_stim_file(config.stimuli.file, config.stimuli.directory).names
    return list_stimuli(find_folder(config))


def key_network(name: str, stimuli: StimulusSet, session: Session) -> str:
    """Digest all that the results of a network depend on."""
    options = session.config.networks
    seen = [identify_features(name, stimuli, session), stimuli.ids, stimuli.digests]
    return digest_key([seen, options.n_top, options.save_activations])


def describe_network(name: str, stimuli: StimulusSet, session: Session) -> list[Path]:
    """Show the stimuli to a network; write what its channels did, what they liked best, and the layers' RDMs."""
    n_top = 0 if name.startswith(FROM_FILE) else session.config.networks.n_top
    entry = find_or_compute(name, stimuli, session, n_top=n_top)
    activations, digest = entry.select(stimuli), digest_key(stimuli.digests)
    sources = [make_uri(session.config.stimuli.file or find_folder(session.config), session.roots)]
    about = describe_map(
        "Activations of the channels of a network over a set of stimuli",
        sources,
        network=activations.network,
        weights=activations.provenance,
        layers=activations.names,
        versions=list_versions(),
    )
    label = activations.network
    outputs = []
    if n_top:
        outputs += write_channel_tables(
            names.channel_table(session.output, label, digest, "channels"),
            names.channel_table(session.output, label, digest, "preferred"),
            entry.statistics or (),
            stimuli.distinct()[0].ids,
            about,
        )
    return [*outputs, *write_layer_rdms(activations, digest, about, session)]


def write_layer_rdms(activations: Activations, digest: str, about: dict[str, object], session: Session) -> list[Path]:
    """Write the RDM of each layer, where they fit the memory."""
    from dnnbrain_app.analyses.rdms import compute_layer_rdm, require_memory

    memory = session.memory // 4  # the file is made in memory, beside them
    try:
        require_memory(len(activations.stimuli), len(activations.names), memory)
    except UsageError as error:
        logger.warning("RDMs are left out: %s", error)
        return []
    rdms = gather_rdms(partial(compute_layer_rdm, gram, activations.stimuli, memory) for gram in activations.layers)
    description = {**about, "Description": "RDMs of layers: 1 - Pearson correlation over units"}
    return write_rdms(names.stimulus_rdms(session.output, activations.network, digest), rdms, description, "dRDM")
