"""Tables that the app itself reads again: the trials behind the betas, and scores by region and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dnnbrain_app.derivatives.files import write_json, write_table
from dnnbrain_app.derivatives.names import sidecar
from dnnbrain_app.errors import InputOutputError, MissingInputError
from dnnbrain_app.records import Array, ChannelStatistics, Trials

TRIAL_COLUMNS = {
    "run": "Run of the trial",
    "onset": "Seconds from the start of the run",
    "duration": "Seconds",
    "stimulus": "Stimulus shown, relative to the folder of the stimuli",
    "repeat": "How many times it had been shown before",
}

CHANNEL_COLUMNS = {
    "layer": "Layer of the network",
    "depth": "Position of the layer in the forward pass, from 1",
    "channel": "Channel (unit of a fully connected layer), from 1",
    "mean": "Mean activation over stimuli and positions",
    "sd": "Standard deviation of the activation over stimuli and positions",
    "maximum": "Highest activation",
    "zeros": "Share of activations that are exactly 0",
    "rank": "1: the stimulus with the highest activation",
    "stimulus": "Name of the stimulus",
    "value": "The channel's highest activation by the stimulus, over positions",
}


def write_trials(path: Path, trials: Trials, description: Mapping[str, Any]) -> list[Path]:
    """Write what each row of the betas is; the sidecar is that of the betas, beside which the table lies."""
    table = {
        "run": [trials.run_labels[run] for run in trials.run],
        "onset": trials.onset,
        "duration": trials.duration,
        "stimulus": trials.stimulus,
        "repeat": trials.repeat,
    }
    write_table(path, table)
    write_json(sidecar(path), {**description, **{name: {"Description": text} for name, text in TRIAL_COLUMNS.items()}})
    return [path, sidecar(path)]


def write_design(
    path: Path, frame_times: Array, columns: Mapping[str, Array], description: Mapping[str, Any]
) -> list[Path]:
    """Write a run's design matrix, one row a volume, with a sidecar."""
    write_table(path, {"frame_time": frame_times, **columns})
    write_json(sidecar(path), {**description, "frame_time": {"Description": "Time that the volume represents, s"}})
    return [path, sidecar(path)]


def read_trials(path: Path) -> Trials:
    """Read what `write_trials` wrote; runs are numbered in the order in which they come."""
    table = read_table(path)
    number = {label: i for i, label in enumerate(dict.fromkeys(table["run"]))}
    return Trials(
        onset=table["onset"].to_numpy(dtype=float),
        duration=table["duration"].to_numpy(dtype=float),
        stimulus=table["stimulus"].to_numpy(dtype=object),
        run=np.array([number[label] for label in table["run"]], dtype=int),
        run_labels=tuple(number),
    )


def write_region_table(
    path: Path,
    layers: Sequence[str],
    regions: Sequence[str],
    scores: Mapping[str, Array],
    description: Mapping[str, Any],
) -> list[Path]:
    """Write scores by region and layer, one row for each pair, with a sidecar.

    Parameters
    ----------
    path : Path
        The TSV.
    layers, regions : sequence of str
        Names; layers in the order of the forward pass (column ``depth`` counts them from 1).
    scores : mapping of str to array of shape (n_layers, n_regions) or (n_regions,)
        The columns.
    description : mapping
        The sidecar.

    Returns
    -------
    list of Path
        The files written.
    """
    shape = (len(layers), len(regions))
    columns = {name: np.broadcast_to(values, shape).T.ravel() for name, values in scores.items()}
    table = {
        "region": np.repeat(np.array(regions, dtype=object), len(layers)),
        "layer": np.tile(np.array(layers, dtype=object), len(regions)),
        "depth": np.tile(np.arange(1, len(layers) + 1), len(regions)),
        **columns,
    }
    write_table(path, table)
    write_json(sidecar(path), description)
    return [path, sidecar(path)]


def write_channel_tables(
    channels: Path,
    preferred: Path,
    statistics: Sequence[ChannelStatistics],
    stimuli: Sequence[str],
    description: Mapping[str, Any],
) -> list[Path]:
    """Write what the channels of a network did over a stimulus set, and which stimuli each liked best.

    Parameters
    ----------
    channels, preferred : Path
        The two tables: a row for each channel; a row for each channel and rank.
    statistics : sequence of ChannelStatistics
        One a layer, in the order of the forward pass.
    stimuli : sequence of str
        Names of the rows that `ChannelStatistics.top_stimuli` points to.
    description : mapping
        What both sidecars say.

    Returns
    -------
    list of Path
        The files written.
    """
    names = np.array(stimuli, dtype=object)
    rows, tops = [], []
    for depth, layer in enumerate(statistics, 1):
        number = np.arange(1, len(layer.mean) + 1)
        columns = {"mean": layer.mean, "sd": layer.sd, "maximum": layer.maximum, "zeros": layer.zeros}
        rows.append(pd.DataFrame({"layer": layer.layer, "depth": depth, "channel": number, **columns}))
        n_top, n_channels = layer.top_values.shape
        tops.append(
            pd.DataFrame(
                {
                    "layer": layer.layer,
                    "depth": depth,
                    "channel": np.repeat(number, n_top),
                    "rank": np.tile(np.arange(1, n_top + 1), n_channels),
                    "stimulus": names[layer.top_stimuli.T.ravel()],
                    "value": layer.top_values.T.ravel(),
                }
            )
        )
    for path, parts in ((channels, rows), (preferred, tops)):
        table = pd.concat(parts, ignore_index=True)
        write_table(path, {str(name): table[name].to_numpy() for name in table})
        known = {name: {"Description": CHANNEL_COLUMNS[name]} for name in table.columns}
        write_json(sidecar(path), {**description, **known})
    return [channels, sidecar(channels), preferred, sidecar(preferred)]


def read_region_table(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Array]]:
    """Read what `write_region_table` wrote: layers, regions, and each column as (n_layers, n_regions)."""
    table = read_table(path)
    layers, regions = (tuple(dict.fromkeys(table[key])) for key in ("layer", "region"))
    columns = [name for name in table.columns if name not in ("region", "layer", "depth")]
    shape = (len(regions), len(layers))
    return layers, regions, {name: table[name].to_numpy(dtype=float).reshape(shape).T for name in columns}


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of ours; only ``n/a`` is a missing value.

    Raises
    ------
    MissingInputError, InputOutputError
        It is not there, or is no table.
    """
    texts = {"region": str, "layer": str, "stimulus": str, "run": str}
    try:
        return pd.read_csv(path, sep="\t", dtype=texts, na_values=["n/a"], keep_default_na=False)
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputOutputError(f"{path} cannot be read ({error}); delete it and run again") from error
