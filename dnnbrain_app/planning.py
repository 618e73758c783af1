"""What would be done, and what it would take: ``--dry-run``, the listings, and fetching weights beforehand."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dnnbrain_app.activations import FROM_FILE, choose_reduced, list_file_layers, plan_features
from dnnbrain_app.analysis_stages import check_analyses, choose_analyses, find_output
from dnnbrain_app.config import Config, count_cpus, measure_memory
from dnnbrain_app.derivatives.dataset import check_places
from dnnbrain_app.derivatives.names import join_entities
from dnnbrain_app.errors import DnnbrainError, UsageError
from dnnbrain_app.group_stages import gather_group, share_entities
from dnnbrain_app.inputs import find_stimuli_folder, gather_trials, gather_units, map_stimuli
from dnnbrain_app.network_stages import list_stimulus_names
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.records import Unit
from dnnbrain_app.session import Progress
from dnnbrain_app.stimuli.sets import find_missing
from dnnbrain_app.stimuli.videos import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)

_GIGA = 1024**3
_OVERHEAD = 0.9 * _GIGA  # torch, nilearn and the interpreter, measured
_PASSES = 12  # how often the time series are read, copied and multiplied, as equivalents of one pass in memory


@dataclass(frozen=True, slots=True)
class _Network:
    """A network's size, from a dry run of two images."""

    name: str
    sizes: tuple[int, ...]
    seconds_per_image: float

    @property
    def n_layers(self) -> int:
        return len(self.sizes)

    @property
    def n_features(self) -> int:
        return sum(self.sizes)


def list_networks() -> str:
    """List the networks that can be named, by where they come from."""
    from dnnbrain_app.networks.sources import describe_sources

    return describe_sources()


def fetch_weights(names: Sequence[str], options: NetworkOptions, progress: Progress) -> str:
    """Download the weights of networks; returns where each now is. The only thing here that writes, and downloads."""
    from dnnbrain_app.networks import sources

    lines = []
    for name in names:
        path = sources.fetch_weights(name, options, partial(progress, f"{name}: MB"))
        lines.append(f"{name}: {path}")
    return "\n".join(lines)


def list_layers(name: str, options: NetworkOptions) -> str:
    """List a network's layers in the order of the forward pass, with shape, units and size; ``*`` marks main ones."""
    if name.startswith(FROM_FILE):
        return _list_file(name)
    from dnnbrain_app.networks.layers import choose_layers, list_layers
    from dnnbrain_app.networks.sources import load_network

    network = load_network(name, options, fill=False)
    layers = list_layers(network)
    main = {layer.name for layer in choose_layers(layers, ("main",), network.default_layers)}
    named = any(layer.alias for layer in layers)
    rows = [("", "layer", *(["also"] if named else []), "kind", "shape", "units", "MB/1000 images")]
    for layer in layers:
        shape = "x".join(map(str, layer.shape)) if not layer.problem else f"({layer.problem})"
        size = f"{layer.n_features * 4e3 / 1e6:.1f}" if not layer.problem else ""
        mark = "*" if layer.name in main else ""
        also = [layer.alias] if named else []
        rows.append((mark, layer.name, *also, layer.kind, shape, str(layer.n_features or ""), size))
    notes = ["* belongs to --layers main (the default)"]
    if network.n_frames:
        notes.append(f"shown clips of {network.n_frames} frames: (channels x frames x rows x columns)")
    if not network.differentiable:
        notes.append("no gradients: it can be mapped to brains, but not looked into (saliency, synthesis)")
    return "\n".join([_format_table(rows), "", *notes])


def _list_file(name: str) -> str:
    rows = [("layer", "shape", "units", "MB/1000 stimuli")]
    for layer, shape in list_file_layers(name, ("all",)).items():
        units = math.prod(shape)
        rows.append((layer, "x".join(map(str, shape)), str(units), f"{units * 4e3 / 1e6:.1f}"))
    return f"{_format_table(rows)}\n\n--layers main (the default) means all of them"


def plan(config: Config) -> str:
    """Resolve the inputs and estimate what the run would take.

    Returns
    -------
    str
        A table with a row for each unit, then the networks, then the totals.
    """
    if config.level == "stimulus":
        return _plan_stimuli(config)
    if config.level == "group":
        return _plan_group(config)
    # pybids would write the database
    units = gather_units(replace(config, dataset=replace(config.dataset, bids_database_dir=None)))
    check_analyses(config)
    check_places(config.bids_dir, find_output(config), config.run.work_dir)
    networks = [_measure_network(name, config) for name in config.networks.names]
    speed = _measure_speed()
    rows: list[tuple[str, ...]] = [
        ("participant", "task", "space", "runs", "volumes", "trials", "stimuli", "missing", "disk", "memory", "time")
    ]
    totals = np.zeros(2)
    for unit in units:
        try:
            row, disk, seconds = _plan_unit(unit, networks, speed, config)
        except UsageError:
            raise  # the same for every participant
        except DnnbrainError as error:
            rows.append((unit.participant, unit.task, unit.space, str(len(unit.runs)), f"! {error}", *[""] * 6))
            continue
        rows.append(row)
        totals += disk, seconds
    text = [
        _format_table(rows),
        "",
        *(f"network {net.name}: {net.n_layers} layers, {net.n_features:,} units an image" for net in networks),
        f"analyses: {', '.join(choose_analyses(config))}",
        f"output: {find_output(config)}    work: {config.run.work_dir}",
        f"cores: {count_cpus(config.run)}    memory allowed: {measure_memory(config.run) / _GIGA:.1f} GB",
        f"estimated in all: {totals[0] / _GIGA:.2f} GB on disk, {_format_time(totals[1])} on this machine",
        "nothing was written",
    ]
    return "\n".join(text)


def _plan_group(config: Config) -> str:
    """Say what the group level would compare."""
    rows: list[tuple[str, ...]] = [("task and space", "participants", "labels")]
    for units in gather_group(config, find_output(config)):
        labels = " ".join(unit.participant for unit in units)
        rows.append((join_entities(share_entities(units[0])), str(len(units)), labels))
    return "\n".join([_format_table(rows), "", f"output: {find_output(config) / 'group'}", "nothing was written"])


def _plan_stimuli(config: Config) -> str:
    """Say what the stimulus level would do."""
    check_places(config.bids_dir, find_output(config), config.run.work_dir)
    stimuli = list_stimulus_names(config)
    n, memory = len(stimuli), measure_memory(config.run)
    rows: list[tuple[str, ...]] = [("network", "layers", "units", "stimuli", "kept as", "scratch", "work", "time")]
    for name in config.networks.names:
        network = _measure_network(name, config)
        kept = plan_features(n, memory, config.networks.projection)
        width = kept.projection or np.inf
        n_features = sum(min(n_features, width) for n_features in network.sizes)
        work = sum(8.0 * n**2 if kept.keep_kernel else 4.0 * n * min(size, width) for size in network.sizes)
        how = "inner products" if kept.keep_kernel else "features"
        how += f", {kept.projection} dimensions" if kept.projection else ""
        sizes = (f"{4.0 * n * n_features / _GIGA:.2f} GB", f"{work / _GIGA:.2f} GB")
        seconds = n * network.seconds_per_image
        rows.append(
            (name, str(network.n_layers), f"{network.n_features:,}", str(n), how, *sizes, _format_time(seconds))
        )
    where = f"output: {find_output(config)}    work: {config.run.work_dir}"
    return "\n".join([_format_table(rows), "", where, "nothing was written"])


@dataclass(frozen=True, slots=True)
class _Load:
    """How much of what a unit has."""

    n_volumes: int
    n_voxels: int
    n_trials: int
    n_betas: int
    n_stimuli: int
    n_looks: int  # images that a network sees, frames of clips among them
    n_rows: int  # of the models: stimuli, or volumes
    missing: list[str]


def _plan_unit(
    unit: Unit, networks: Sequence[_Network], speed: float, config: Config
) -> tuple[tuple[str, ...], float, float]:
    """Estimate one unit: its row of the table, bytes on disk, seconds."""
    load = _measure_load(unit, config)
    layers = sum(network.n_layers for network in networks)
    disk = 4.0 * (load.n_betas + 3 * layers + len(networks)) * load.n_voxels
    seconds = _estimate_seconds(load, networks, speed, len(unit.runs), config)
    row = (
        unit.participant,
        unit.task,
        unit.label.partition("_space-")[2] or unit.space,
        str(len(unit.runs)),
        str(load.n_volumes),
        str(load.n_trials),
        str(load.n_stimuli - len(load.missing)),
        f"{len(load.missing)} ({load.missing[0]} ...)" if load.missing else "0",
        f"{disk / _GIGA:.2f} GB",
        f"{_estimate_memory(load, networks, max(run.n_volumes for run in unit.runs), config) / _GIGA:.1f} GB",
        _format_time(seconds),
    )
    return row, disk, seconds


def _measure_load(unit: Unit, config: Config) -> _Load:
    from dnnbrain_app.dataset.images import read_unit_space

    trials, model = gather_trials(unit, config), config.responses.model
    stimuli = sorted(set(trials.stimulus))
    n_volumes = 0 if model == "precomputed" else sum(run.n_volumes for run in unit.runs)
    lengths = {name: duration for name, duration in zip(trials.stimulus, trials.duration, strict=True) if duration > 0}
    moving = [name for name in stimuli if Path(name).suffix.lower() in (*VIDEO_SUFFIXES, ".gif")]
    n_frames = sum(max(1, round(lengths.get(name, 1.0) * config.stimuli.frame_rate)) for name in moving)
    return _Load(
        n_volumes=n_volumes,
        n_voxels=read_unit_space(unit).n_voxels,
        n_trials=len(trials),
        n_betas={"condition": len(stimuli), "timeseries": 0}.get(model, len(trials)),
        n_stimuli=len(stimuli),
        n_looks=len(stimuli) - len(moving) + n_frames,
        n_rows=n_volumes if model == "timeseries" else len(stimuli),
        missing=find_missing(stimuli, find_stimuli_folder(config), map_stimuli(config)),
    )


def _estimate_memory(load: _Load, networks: Sequence[_Network], longest: int, config: Config) -> float:
    features = max((4.0 * load.n_looks * network.n_features for network in networks), default=0.0)
    features = min(features, measure_memory(config.run) / 4)
    layers = sum(network.n_layers for network in networks)
    series = 4.0 * load.n_voxels * (2 * longest + 2 * load.n_betas + 2 * load.n_rows)
    return _OVERHEAD + series + features + 16.0 * layers * load.n_stimuli**2


def _estimate_seconds(load: _Load, networks: Sequence[_Network], speed: float, n_runs: int, config: Config) -> float:
    n, n_columns = load.n_rows, load.n_voxels + config.encoding.n_null
    layers, folds = sum(network.n_layers for network in networks), config.encoding.n_folds
    encoding = layers * folds * (2.0 * n * n * n_columns + 60.0 * n * n_columns + 25.0 * n**3)
    encoding *= "encoding" in choose_analyses(config)
    passes = _PASSES * (4 if config.responses.model == "glmsingle" else 1)
    glm = (2.0 * load.n_betas * load.n_volumes / max(n_runs, 1) + passes * 10.0 * load.n_volumes) * load.n_voxels
    return (glm + encoding) / speed + load.n_looks * sum(network.seconds_per_image for network in networks) + 5


def _measure_network(name: str, config: Config) -> _Network:
    if name.startswith(FROM_FILE):
        return _Network(name, tuple(map(math.prod, list_file_layers(name, config.networks.layers).values())), 0.0)
    from dnnbrain_app.networks.layers import list_layers
    from dnnbrain_app.networks.sources import load_network

    network = load_network(name, config.networks)
    start = time.perf_counter()
    layers = list_layers(network)
    seconds = (time.perf_counter() - start) / 2
    chosen = choose_reduced(layers, network, config.networks)
    return _Network(name, tuple(layer.n_features for layer in chosen), seconds)


def _measure_speed() -> float:
    """Operations a second of a float32 matrix product here, the best of three short ones."""
    a = np.ones((1024, 1024), dtype=np.float32)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def _format_time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _format_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [
        max(len(row[i]) for row in rows if not any(cell.startswith("! ") for cell in row)) for i in range(len(rows[0]))
    ]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
