"""What an analysis starts from: the units of work, the trials of each, and their stimuli."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from dnnbrain_app import __version__
from dnnbrain_app.config import Config
from dnnbrain_app.dataset.betas import find_beta_units, read_beta_trials
from dnnbrain_app.dataset.events import build_trials
from dnnbrain_app.dataset.index import find_units
from dnnbrain_app.dataset.roots import find_raw
from dnnbrain_app.derivatives.files import write_json
from dnnbrain_app.derivatives.sidecars import read_json
from dnnbrain_app.errors import BadDataError, DnnbrainError, MissingInputError
from dnnbrain_app.records import StimulusSet, Trials, Unit
from dnnbrain_app.session import Session
from dnnbrain_app.stimuli.mapping import read_stim_map
from dnnbrain_app.stimuli.sets import find_stimuli


def gather_units(config: Config, failures: dict[str, DnnbrainError] | None = None) -> list[Unit]:
    """Find what there is to compute: runs and their events or, for precomputed responses, betas and their trials."""
    find = find_beta_units if config.responses.model == "precomputed" else find_units
    return find(config.bids_dir, config.dataset, failures)


def gather_trials(unit: Unit, config: Config) -> Trials:
    """Read which stimulus was shown when."""
    options = config.stimuli
    if config.responses.model == "precomputed":
        return read_beta_trials(unit, options.column, options.trial_filter)
    trials = build_trials(unit.runs, options.column, options.trial_filter)
    if config.responses.model != "timeseries":  # of which one film is enough
        require_two(trials.stimulus, f"the events of {unit.label} name")
    return trials


def require_two(stimuli: Iterable[str], where: str) -> None:
    """Refuse to compare a stimulus with itself."""
    different = sorted(set(stimuli))
    if len(different) < 2:
        named = f"only {str(different[0])!r}" if different else "none"
        raise BadDataError(f"{where} {named}; at least two different stimuli are needed")


def find_stimuli_folder(config: Config) -> Path:
    """Return the folder of the stimuli."""
    return config.stimuli.directory or find_raw(config.bids_dir) / "stimuli"


def map_stimuli(config: Config) -> dict[str, str] | None:
    """Read from which file each stimulus comes, where the user tells it."""
    options = config.stimuli
    if options.stim_map is None:
        return None
    if not options.stim_map.exists():
        raise MissingInputError(f"--stim-map {options.stim_map}: does not exist")
    return read_stim_map(options.stim_map, options.column)


def gather_stimuli(
    named: Iterable[str], folder: Path, session: Session, table: pd.DataFrame | None = None
) -> StimulusSet:
    """Find the stimuli; what is known of their files is kept in the work folder, so that they are read once.

    At the stimulus level the names are those of files, with `table` or without.
    """
    path = session.config.run.work_dir / f"stimuli-{__version__}.json"
    known = read_json(path)
    n_known = len(known)
    progress = partial(session.progress, "stimuli: files")
    files = map_stimuli(session.config) if session.config.level == "participant" else None
    stimuli = find_stimuli(named, folder, table=table, files=files, known=known, progress=progress)
    if len(known) != n_known:
        write_json(path, known)
    return stimuli
