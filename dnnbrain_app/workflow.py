"""The corridor: what happens to a dataset, in order.

At the participant level a unit (participant x task x space) passes through its stages: responses, then for each
network the activations and each analysis. At the stimulus level a network looks at a whole stimulus set. A stage has a
key, the digest of all that its numbers depend on; a stage whose key is on record and whose files are there is not done
again. The report is made from the files, so that ``--reports-only`` shows the same.
"""

from __future__ import annotations

import logging
import shutil
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from dnnbrain_app import __version__
from dnnbrain_app.activations import compute_activations, is_written
from dnnbrain_app.analysis_stages import (
    ANALYSES,
    BRAIN_ANALYSES,
    check_analyses,
    check_networks,
    choose_analyses,
    find_output,
    key_analysis,
    key_decoding,
)
from dnnbrain_app.config import Config, count_cpus, dump_toml, measure_memory
from dnnbrain_app.dataset.atlases import read_atlas
from dnnbrain_app.dataset.images import read_unit_space
from dnnbrain_app.dataset.index import find_derivatives
from dnnbrain_app.dataset.roots import find_raw
from dnnbrain_app.dataset.validation import validate_dataset
from dnnbrain_app.derivatives import names
from dnnbrain_app.derivatives.dataset import check_places, check_writable, prepare_dataset
from dnnbrain_app.derivatives.files import write_text
from dnnbrain_app.derivatives.ledger import Ledger, digest_key
from dnnbrain_app.derivatives.locks import hold_lock
from dnnbrain_app.derivatives.sidecars import list_versions
from dnnbrain_app.errors import DnnbrainError, MissingInputError, TemporaryError, UsageError
from dnnbrain_app.group_stages import compare_responses, gather_group, key_group, share_entities
from dnnbrain_app.inputs import find_stimuli_folder, gather_stimuli, gather_trials, gather_units
from dnnbrain_app.network_stages import describe_network, gather_listed, key_network
from dnnbrain_app.records import Activations, StimulusSet, Trials, Unit
from dnnbrain_app.reporting import report_participant
from dnnbrain_app.response_stages import (
    Responses,
    convolve_activations,
    estimate_responses,
    key_responses,
    read_responses,
    read_timeseries,
)
from dnnbrain_app.session import STEP, Progress, Session

logger = logging.getLogger(__name__)


def run_participants(config: Config, *, command_line: Sequence[str], progress: Progress) -> int:
    """Analyse every participant selected; returns the exit code.

    A unit that fails does not stop the others, unless the command line is wrong: its traceback goes into a crash file,
    and its participant's report shows the message. The code is 0 when every output asked for exists; that of the
    failure when all units failed with the same; else 1.
    """
    damaged: dict[str, DnnbrainError] = {}
    units = gather_units(config, damaged)
    check_analyses(config)
    session = open_session(config, command_line, progress)
    failures: dict[str, Exception] = dict(damaged)
    done: set[str] = set()
    for label, error in damaged.items():
        record_unit(label, label, error, session)
    for _, group in groupby(units, key=lambda unit: unit.participant):
        theirs = list(group)
        for unit in theirs:
            try:
                logger.log(STEP, "%s: %s", unit.label, analyse_unit(unit, session))
                done.add(unit.label)
            except UsageError:
                raise  # the same for every participant
            except Exception as error:
                failures[unit.label] = error
                record_unit(unit.label, f"sub-{unit.participant}", error, session)
        report(theirs, session, failures)
        if failures and config.run.stop_on_first_crash:
            break
    return conclude(units, done, failures, session)


def analyse_unit(unit: Unit, session: Session) -> str:
    """Take one unit from its events to its maps and tables; returns what was done, in words."""
    config, start = session.config, time.monotonic()
    trials, stimuli, keys = survey_unit(unit, session)
    with hold_lock(names.lock_file(session.output, unit)):
        ledger = Ledger(names.status_file(session.output, unit))
        pending = [stage for stage, key in keys.items() if not ledger.is_current(stage, key)]
        unwritten = [name for name in config.networks.names if not is_written(name, stimuli, session)]
        for network in unwritten:
            compute_activations(network, stimuli, session)
        if not pending:
            return f"activations written: {', '.join(unwritten)}" if unwritten else "all results are there already"
        for stage, outputs in run_stages(pending, unit, trials, stimuli, ledger, session):
            ledger.record(stage, keys[stage], outputs)
    return f"done in {time.monotonic() - start:.0f} s: {', '.join(pending)}"


def run_stages(
    pending: Sequence[str], unit: Unit, trials: Trials, stimuli: StimulusSet, ledger: Ledger, session: Session
) -> Iterator[tuple[str, list[Path]]]:
    """Do the stages that are not done, in their order; yields each with the files that it wrote."""
    config = session.config
    space = read_unit_space(unit)
    atlas = read_atlas(config.dataset.atlas, space, config.dataset.rois)
    if config.responses.model != "timeseries":  # whose networks look at frames, which are not known yet
        for network in dict.fromkeys(stage.partition(" ")[2] for stage in pending if " " in stage):
            compute_activations(network, stimuli, session)  # first: a wrong name or a missing file costs no GLM
    responses: Responses | None = None
    activations: Activations | None = None
    current = ""
    for stage in pending:
        name, _, network = stage.partition(" ")
        if name == "responses":
            logger.log(STEP, "%s: responses to %d trials in %d runs", unit.label, len(trials), len(unit.runs))
            ledger.forget(stage)
            yield stage, estimate_responses(unit, trials, space, session)
            continue
        if config.responses.model == "timeseries" and network != current:
            responses = read_timeseries(network, unit, space, atlas, trials, stimuli, session)
        responses = responses or read_responses(unit, space, atlas, stimuli, session)
        logger.log(STEP, "%s: %s", unit.label, stage)
        ledger.forget(stage)
        if not network:
            yield stage, BRAIN_ANALYSES[name](responses, session)
            continue
        if network != current or activations is None:
            activations, current = bring_activations(network, responses, stimuli, session), network
        yield stage, ANALYSES[name](responses, activations, session)


def bring_activations(network: str, responses: Responses, stimuli: StimulusSet, session: Session) -> Activations:
    """Bring the activations to the rows of the responses: stimuli, or volumes."""
    if responses.series is None:
        return compute_activations(network, stimuli, session).take(responses.stimuli.ids)
    activations = compute_activations(network, responses.stimuli, session)
    if responses.stimuli.ids != stimuli.ids:  # frames in the place of clips
        rate = {"FrameRate": session.config.stimuli.frame_rate}
        activations = replace(activations, provenance={**activations.provenance, **rate})
    return convolve_activations(activations, responses.series)


def survey_unit(unit: Unit, session: Session) -> tuple[Trials, StimulusSet, dict[str, str]]:
    """Find a unit's trials and stimuli, and give each of its stages a key, in the order in which they are done."""
    config = session.config
    trials = gather_trials(unit, config)
    stimuli = gather_stimuli(trials.stimulus, find_stimuli_folder(config), session)
    keys = {"responses": key_responses(unit, config)}
    for network in config.networks.names:
        for name in (name for name in choose_analyses(config) if name in ANALYSES):
            keys[f"{name} {network}"] = key_analysis(name, network, keys["responses"], stimuli, session)
    if "decoding" in choose_analyses(config):
        keys["decoding"] = key_decoding(keys["responses"], stimuli, session)
    return trials, stimuli, keys


def run_stimuli(config: Config, *, command_line: Sequence[str], progress: Progress) -> int:
    """Show the whole stimulus set to every network; returns the exit code.

    No participant is needed. Participants find the activations in the work folder, whichever of the stimuli they saw.
    """
    check_networks(config.networks.names)
    session = open_session(config, command_line, progress)
    stimuli = gather_listed(session)
    failures: dict[str, Exception] = {}
    for name in config.networks.names:
        try:
            logger.log(STEP, "%s: %s", name, analyse_network(name, stimuli, session))
        except UsageError:
            raise
        except Exception as error:
            failures[name] = error
            label = names.label_network(name)
            record_failure(
                name, names.network_log(session.output, label) / session.run_id / f"crash-{label}.txt", error
            )
    n_done = len(config.networks.names) - len(failures)
    folder = session.output / "stimuli"
    logger.log(STEP, "%d of %d networks complete; results: %s", n_done, len(config.networks.names), folder)
    return choose_code(failures, n_done=n_done)


def analyse_network(name: str, stimuli: StimulusSet, session: Session) -> str:
    """Take one network from the stimuli to its tables; returns what was done, in words."""
    start, key = time.monotonic(), key_network(name, stimuli, session)
    folder = names.network_log(session.output, names.label_network(name))
    with hold_lock(folder / "status.lock"):
        ledger = Ledger(folder / "status.json")
        stage = f"activations {digest_key(stimuli.digests)[:12]}"
        if ledger.is_current(stage, key):
            return "all results are there already"
        ledger.forget(stage)
        ledger.record(stage, key, describe_network(name, stimuli, session))
    return f"done in {time.monotonic() - start:.0f} s: {len(stimuli)} stimuli"


def run_group(config: Config, *, command_line: Sequence[str], progress: Progress) -> int:
    """Compare the responses of the participants, of each task and space; returns the exit code."""
    session = open_session(config, command_line, progress)
    groups = gather_group(config, session.output)
    failures: dict[str, Exception] = {}
    folder = names.group_log(session.output)
    for units in groups:
        label = names.join_entities(share_entities(units[0]))
        try:
            logger.log(STEP, "%s: %s", label, analyse_group(label, units, session))
        except Exception as error:
            failures[label] = error
            record_failure(label, folder / session.run_id / f"crash-{label}.txt", error)
    n_done = len(groups) - len(failures)
    logger.log(STEP, "%d of %d groups complete; results: %s", n_done, len(groups), session.output / "group")
    return choose_code(failures, n_done=n_done)


def analyse_group(label: str, units: Sequence[Unit], session: Session) -> str:
    """Take one group from the betas of its participants to its maps; returns what was done, in words."""
    start, key, folder = time.monotonic(), key_group(units), names.group_log(session.output)
    with hold_lock(folder / "status.lock"):
        ledger, stage = Ledger(folder / "status.json"), f"ceilings {label} {session.config.responses.model}"
        if ledger.is_current(stage, key):
            return "all results are there already"
        ledger.forget(stage)
        ledger.record(stage, key, compare_responses(units, session))
    return f"done in {time.monotonic() - start:.0f} s: {len(units)} participants"


def rebuild_reports(config: Config, *, command_line: Sequence[str]) -> int:
    """Make the reports again from the results that are there; returns the exit code."""
    units = gather_units(config)
    check_analyses(config)
    session = open_session(config, command_line, lambda *_: None)
    failures: dict[str, Exception] = {}
    done: set[str] = set()
    for participant, group in groupby(units, key=lambda unit: unit.participant):
        theirs = list(group)
        Ledger(names.report_status(session.output, participant)).forget("report")
        for unit in theirs:
            ledger, keys = Ledger(names.status_file(session.output, unit)), survey_unit(unit, session)[2]
            absent = [stage for stage, key in keys.items() if not ledger.is_current(stage, key)]
            if absent:
                failures[unit.label] = MissingInputError(
                    f"{unit.label}: no results, with these settings, of {', '.join(absent)}; run without --reports-only"
                )
                logger.error("%s", failures[unit.label])
            else:
                done.add(unit.label)
        report(theirs, session, failures)
    return conclude(units, done, failures, session)


# Around the units ----------------------------------------------------------------------------------------------------


def open_session(config: Config, command_line: Sequence[str], progress: Progress) -> Session:
    """Check and prepare the places, and save the resolved configuration."""
    output, work = find_output(config), config.run.work_dir
    check_places(config.bids_dir, output, work)
    if config.run.validate:
        validate_dataset(config.bids_dir)
    brain = config.level != "stimulus"
    raw = find_raw(config.bids_dir) if brain else config.bids_dir  # any folder with stimuli will do for networks
    derivatives = find_derivatives(config.bids_dir, config.dataset) if brain else {}
    prepare_dataset(output, raw, derivatives, __version__)
    if config.run.clean_work_dir:
        for name in ("grams", "features", "frames", "cache"):
            shutil.rmtree(work / name, ignore_errors=True)
    check_writable(work)
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4()}"
    record = {"command_line": list(command_line), "versions": list_versions()}
    write_text(names.config_file(output, run_id), dump_toml(config, record))
    roots = {"": output, "raw": raw, **derivatives}
    return Session(
        config, output, run_id, tuple(command_line), roots, measure_memory(config.run), count_cpus(config.run), progress
    )


def report(units: Sequence[Unit], session: Session, failures: dict[str, Exception]) -> None:
    """Report on one participant; a report that cannot be made is a failure like any other, and loses no result."""
    if any(isinstance(failures.get(unit.label), TemporaryError) for unit in units):
        return  # whoever holds the lock reports
    try:
        report_participant(units, session, failures)
    except Exception as error:
        failures[f"sub-{units[0].participant} report"] = error
        subject = f"sub-{units[0].participant}"
        record_unit(f"{subject} report", subject, error, session)


def record_unit(label: str, subject: str, error: Exception, session: Session) -> None:
    """Record what went wrong with a unit, or with a participant."""
    folder = subject.removeprefix("sub-")
    record_failure(label, names.crash_file(session.output, folder, session.run_id, label.replace(" ", "-")), error)


def record_failure(label: str, path: Path, error: Exception) -> None:
    """Say what went wrong with a unit, a participant or a network, and keep the traceback."""
    write_text(path, "".join(traceback.format_exception(error)))
    logger.error("%s failed: %s\n         traceback: %s", label, error or type(error).__name__, path)


def conclude(units: Sequence[Unit], done: Set[str], failures: dict[str, Exception], session: Session) -> int:
    """Say how it went; returns the exit code."""
    reports = sorted({str(names.report(session.output, unit.participant)) for unit in units})
    shown = ", ".join(reports) if len(reports) <= 3 else f"{session.output}/sub-*.html"
    asked = {unit.label for unit in units} | {label for label in failures if not label.endswith(" report")}
    logger.log(STEP, "%d of %d units complete; reports: %s", len(done), len(asked), shown)
    return choose_code(failures, n_done=len(done))


def choose_code(failures: Mapping[str, Exception], *, n_done: int) -> int:
    """Choose the exit code: 0, that of the failure when nothing was done and all failed with the same, else 1."""
    codes = {getattr(error, "exit_code", 1) for error in failures.values()}
    if len(codes) == 1 and not n_done:
        return int(codes.pop())
    return 1 if failures else 0
