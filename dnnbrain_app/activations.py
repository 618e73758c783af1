"""From stimuli to activations: the stage that the stimulus and the participant level share.

Whatever has looked at the stimuli before, in any run that uses the same work folder, is not asked again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnbrain_app import __version__
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.activations import fill_store, identify_file, list_shapes, write_activations
from dnnbrain_app.derivatives.features import FeatureStore
from dnnbrain_app.derivatives.files import write_atomically
from dnnbrain_app.derivatives.grams import GramEntry, find_grams, write_grams
from dnnbrain_app.derivatives.ledger import digest_key, stamp
from dnnbrain_app.derivatives.locks import hold_entry_lock
from dnnbrain_app.errors import MissingInputError, UsageError
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.records import Activations, ChannelStatistics, Gram, StimulusSet
from dnnbrain_app.session import STEP, Session
from dnnbrain_app.stimuli.clips import read_clip, warn_of_stills
from dnnbrain_app.stimuli.frames import Frames, find_frames
from dnnbrain_app.stimuli.images import read_image
from dnnbrain_app.stimuli.stim_files import read_stim_file

if TYPE_CHECKING:
    from dnnbrain_app.networks.layers import Layer
    from dnnbrain_app.networks.network import Network
    from dnnbrain_app.networks.projection import Projector
    from dnnbrain_app.networks.reduction import Reduction

# The room of networks imports torch: only where a network is needed.

logger = logging.getLogger(__name__)
PROJECTED = 4096  # dimensions of a layer when the inner products of all stimuli do not fit the memory
ANALYSIS_SHARE = 4  # the part of the memory that a regression works in
FEATURES_SHARE = 4  # ... and that features may take before they go to the disk
FROM_FILE = "act:"  # activations that somebody else has computed, in a file
AVERAGED = "activations of a clip are means over its frames, weighted by their durations"
GIGA = 1024**3


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """How the activations of so many stimuli are kept.

    Parameters
    ----------
    keep_kernel : bool
        Whether inner products of all stimuli are computed; else the features themselves are kept.
    projection : int
        Dimensions to which wider layers are projected; 0: none are.
    """

    keep_kernel: bool
    projection: int


def plan_features(n_stimuli: int, memory: int, projection: int) -> FeaturePlan:
    """Choose inner products while ridge regression on them fits the memory, else projected features.

    Examples
    --------
    >>> plan_features(5000, 16 * GIGA, 0), plan_features(73000, 16 * GIGA, 0)
    (FeaturePlan(keep_kernel=True, projection=0), FeaturePlan(keep_kernel=False, projection=4096))
    """
    from dnnbrain_app.analyses.budget import fits_kernel

    fits = fits_kernel(n_stimuli, memory // ANALYSIS_SHARE)
    return FeaturePlan(fits, projection or (0 if fits else PROJECTED))


def identify_features(name: str, stimuli: StimulusSet, session: Session) -> dict[str, Any]:
    """Say, without loading the network, what its activations depend on besides which stimuli these are."""
    from dnnbrain_app.networks.sources import identify_weights, takes_clips

    config = session.config
    options = config.networks
    plan = plan_features(len(set(stimuli.digests)), session.memory, options.projection)
    file = name.startswith(FROM_FILE)
    return {
        "dnnbrain": __version__,
        "network": _identify_given(name) if file else identify_weights(name, options),
        "layers": options.layers,
        "mask": options.dnn_mask and _stamp_mask(options.dnn_mask),
        "pooling": options.pooling,
        "precision": options.precision,
        "frame_rate": None if file or takes_clips(name) else config.stimuli.frame_rate,
        "kernel": plan.keep_kernel,
        "projection": plan.projection,
        "seed": config.run.random_seed if plan.projection else None,
    }


def is_written(name: str, stimuli: StimulusSet, session: Session) -> bool:
    """Whether the user has the activations as a file, or does not want them."""
    return not session.config.networks.save_activations or name_file(name, stimuli, session).exists()


def name_file(name: str, stimuli: StimulusSet, session: Session) -> Path:
    """Name the ``.act.h5`` of these stimuli."""
    features = digest_key(identify_features(name, stimuli, session))
    return names.activations(
        session.output, names.label_network(name), digest_key([features, stimuli.ids, stimuli.digests])
    )


def compute_activations(name: str, stimuli: StimulusSet, session: Session) -> Activations:
    """Show the stimuli to a network, unless somebody has."""
    return find_or_compute(name, stimuli, session).select(stimuli)


def find_or_compute(name: str, stimuli: StimulusSet, session: Session, *, n_top: int = 0) -> GramEntry:
    """Find the entry of the cache that has these stimuli, or make it; one process does it, others wait for it.

    Parameters
    ----------
    name : str
        The network.
    stimuli : StimulusSet
        Copies are looked at once.
    session : Session
        Settings, places, resources.
    n_top : int
        Above 0: the entry must have the statistics of channels, over just these stimuli, and so many top stimuli.
    """
    folder = session.config.run.work_dir / "grams"
    distinct, rows = stimuli.distinct()
    identity = digest_key(identify_features(name, distinct, session))
    to_write = not is_written(name, stimuli, session)

    def find() -> GramEntry | None:
        entry = find_grams(folder, identity, distinct.digests)
        is_enough = entry is not None and not to_write and (not n_top or has_statistics(entry, distinct, n_top))
        return entry if is_enough else None

    entry = find()
    if entry is not None:
        return entry
    key = digest_key([identity, distinct.digests])[:32]
    waiting = partial(logger.log, STEP, "%s: another process looks at these stimuli; waiting for it", name)
    with hold_entry_lock(folder / "locks" / f"{key}.lock", waiting):
        entry = find()
        if entry is not None:
            return entry
        shards = session.config.run.work_dir / "features" / f"{key}-{n_top}"
        with FeatureStore(shards, session.memory // FEATURES_SHARE) as store:
            about, layers, statistics = fill_features(name, distinct, store, n_top, session)
            label = names.label_network(name)
            description = {"network": label, "provenance": about}
            if to_write:
                target = name_file(name, stimuli, session)
                sidecar = {"Network": label, "Layers": store.layers, **about}
                write_activations(
                    target, store, store.layers, stimuli=stimuli.ids, rows=rows, network=label, sidecar=sidecar
                )
            grams = make_layer_grams(name, store, layers, session)
            entry = write_grams(folder, identity, distinct.digests, description, grams, statistics)
            store.remove()
    return entry


def has_statistics(entry: GramEntry, stimuli: StimulusSet, n_top: int) -> bool:
    """Whether an entry tells of the channels over just these stimuli."""
    found = entry.statistics
    n_stimuli = len(stimuli)
    return bool(found) and all(
        layer.n_stimuli == n_stimuli and len(layer.top_values) == min(n_top, n_stimuli) for layer in found or ()
    )


def fill_features(
    name: str, stimuli: StimulusSet, store: FeatureStore, n_top: int, session: Session
) -> tuple[dict[str, Any], Sequence[Layer], list[ChannelStatistics] | None]:
    """Bring into the store what it does not have yet, from the network or from the file.

    Returns
    -------
    dict
        Provenance.
    sequence of Layer
        As the store has them.
    list of ChannelStatistics or None
        Where `n_top` asks for them, and a network tells.
    """
    if name.startswith(FROM_FILE):
        return (*read_from_file(name, stimuli, store, session), None)
    return extract_from_network(name, stimuli, store, n_top, session)


def extract_from_network(
    name: str, stimuli: StimulusSet, store: FeatureStore, n_top: int, session: Session
) -> tuple[dict[str, Any], Sequence[Layer], list[ChannelStatistics] | None]:
    """Show the network the stimuli that the store does not have yet; see `fill_features`."""
    from dnnbrain_app.networks.layers import list_layers
    from dnnbrain_app.networks.projection import Projector
    from dnnbrain_app.networks.sources import load_network
    from dnnbrain_app.networks.summary import merge_statistics

    plan = plan_features(len(stimuli), session.memory, session.config.networks.projection)
    options = session.config.networks
    network = load_network(name, options)
    layers = choose_reduced(list_layers(network), network, options)
    projector = Projector(plan.projection, session.config.run.random_seed) if plan.projection else None
    kept = projector.plan(layers) if projector else layers
    about = {**network.provenance, "Precision": options.precision, **describe_reduction(layers, plan)}
    frames = choose_frames(network, stimuli, session)
    if frames is not None:
        about |= {"FrameRate": session.config.stimuli.frame_rate, "Clips": AVERAGED}
    store.open({layer.name: layer.shape for layer in kept}, len(stimuli))
    n_features, n_wide = sum(layer.n_features for layer in layers), sum(layer not in layers for layer in kept)
    if n_wide:
        logger.log(STEP, "%s: %d layers are projected at random to %d dimensions", name, n_wide, plan.projection)
    logger.log(
        STEP,
        "%s looks at %s: %d layers, %s units, %.1f GB of features",
        name,
        f"{len(frames)} frames of {len(stimuli)} stimuli" if frames else f"{len(stimuli)} stimuli",
        len(layers),
        f"{n_features:,}",
        store.n_bytes / GIGA,
    )
    show_stimuli(network, layers, stimuli, frames, store, projector, n_top, session)
    return about, kept, merge_statistics(layers, store.extras()) if n_top else None


def gather_frames(stimuli: StimulusSet, session: Session) -> Frames:
    """Find what a network of images sees of the stimuli: the frames of clips are made in the work folder."""
    config = session.config
    return find_frames(
        stimuli,
        config.stimuli.frame_rate,
        config.run.work_dir / "frames" / __version__,
        write=write_atomically,
        n_jobs=session.n_cpus,
        progress=partial(session.progress, "stimuli: frames"),
    )


def choose_frames(network: Network, stimuli: StimulusSet, session: Session) -> Frames | None:
    """Find the frames that a network sees one by one; None where it sees the stimuli as they are."""
    if network.n_frames:
        warn_of_stills(stimuli, network.name)
        return None
    frames = gather_frames(stimuli, session)
    return frames if frames.moves else None


def show_stimuli(
    network: Network,
    layers: Sequence[Layer],
    stimuli: StimulusSet,
    frames: Frames | None,
    store: FeatureStore,
    projector: Projector | None,
    n_top: int,
    session: Session,
) -> None:
    """Show a network the stimuli that the store does not have yet; of the frames of a clip, it gets the mean."""
    from dnnbrain_app.networks.averaging import AveragingStore
    from dnnbrain_app.networks.extraction import extract_features

    options = session.config.networks
    extract = partial(
        extract_features,
        network,
        layers,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        progress=partial(session.progress, f"{network.name}: images"),
    )
    if frames is not None:
        clips = stimuli.index(frames.clip)
        averages = AveragingStore(store, layers, clips, frames.weights, projector=projector, n_top=n_top)
        extract(frames.stimuli, read_image, store=averages)
    else:
        read = partial(read_clip, n_frames=network.n_frames) if network.n_frames else read_image
        extract(stimuli, read, store=store, projector=projector, summarise=n_top)


def make_layer_grams(name: str, store: FeatureStore, layers: Sequence[Layer], session: Session) -> Iterator[Gram]:
    """Make the layers' Grams one by one; says so where there are too many stimuli for inner products."""
    from dnnbrain_app.networks.extraction import make_grams

    plan = plan_features(store.n_stimuli, session.memory, session.config.networks.projection)
    if not plan.keep_kernel:
        logger.warning(
            "%d stimuli: analyses of their inner products do not fit the memory (%.1f GB a layer); features are kept "
            "instead. More --mem, or fewer stimuli, avoid it",
            store.n_stimuli,
            8 * store.n_stimuli**2 / GIGA,
        )
    progress = partial(session.progress, f"{name}: layers")
    return make_grams(store, layers, keep_kernel=plan.keep_kernel, progress=progress)


def choose_reduced(layers: Sequence[Layer], network: Network, options: NetworkOptions) -> list[Layer]:
    """Choose the layers that the options name, with what is kept of each."""
    from dnnbrain_app.networks.layers import choose_layers
    from dnnbrain_app.networks.reduction import parse_mask, plan_reduction

    masks = parse_mask(options.dnn_mask) if options.dnn_mask else {}
    chosen = choose_layers(layers, tuple(masks) or options.layers, network.default_layers)
    return plan_reduction(chosen, masks, options.pooling)


def describe_reduction(layers: Sequence[Layer], plan: FeaturePlan) -> dict[str, Any]:
    """Say what was kept of the layers where it is not all of them."""
    kept = {layer.name: _spell(layer.reduction) for layer in layers if layer.reduction is not None}
    about: dict[str, Any] = {"Reduction": kept} if kept else {}
    if plan.projection and any(layer.n_features > plan.projection for layer in layers):
        about["Projection"] = {
            "Dimensions": plan.projection,
            "Layers": [layer.name for layer in layers if layer.n_features > plan.projection],
            "Method": "very sparse random projection, density 1 / sqrt(units)",
        }
    return about


def _spell(reduction: Reduction) -> str:
    chosen = reduction.selection
    axes = (("channels", chosen.channels), ("rows", chosen.rows), ("columns", chosen.columns))
    kept = [f"{len(numbers)} {axis}" for axis, numbers in axes if numbers is not None]
    return ", ".join([*kept, *([f"{reduction.pooling} of each channel"] if reduction.pooling else [])])


def read_from_file(
    name: str, stimuli: StimulusSet, store: FeatureStore, session: Session
) -> tuple[dict[str, Any], Sequence[Layer]]:
    """Bring the activations of a file into the store; returns provenance and layers."""
    from dnnbrain_app.networks.layers import Layer

    options, path = session.config.networks, _find_file(name)
    if options.dnn_mask or options.pooling or options.projection:
        raise UsageError(f"--dnn-mask, --pool and --projection are for networks; {name} is taken as it is")
    beside = _find_names(path)
    fill_store(
        path,
        store,
        options.layers,
        stimuli.ids,
        names=tuple(read_stim_file(beside).rows["stimID"]) if beside.exists() else None,
        progress=partial(session.progress, f"{name}: stimuli"),
    )
    shapes = {layer: store.shape(layer) for layer in store.layers}
    layers = [
        Layer(layer, layer, 1, shape, math.prod(shape), depth, "file")
        for depth, (layer, shape) in enumerate(shapes.items())
    ]
    return {
        "Name": name,
        "Weights": path.name,
        "Source": "activations computed elsewhere",
        **identify_file(path),
    }, layers


def list_file_layers(name: str, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer that would be taken from a file of activations."""
    return list_shapes(_find_file(name), layers)


def _find_names(path: Path) -> Path:
    """Name the file that says what the rows of an ``.act.h5`` of the original are."""
    return path.with_name(path.name.removesuffix(".act.h5") + ".stim.csv")


def _identify_given(name: str) -> dict[str, Any]:
    path = _find_file(name)
    named = _find_names(path)
    return {**identify_file(path), "names": stamp(named) if named.exists() else None}


def _stamp_mask(path: Path) -> list[Any]:
    try:
        return stamp(path)
    except OSError as error:
        raise MissingInputError(f"--dnn-mask {path}: does not exist") from error


def _find_file(name: str) -> Path:
    return Path(name.removeprefix(FROM_FILE)).expanduser()
