"""The door: the command line becomes a Config, a failure becomes a message and an exit code.

The only file that knows click. Nothing heavy is imported here: ``--help`` must answer at once, and the number of
threads has to be in the environment before numpy is first imported.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import click

from dnnbrain_app import __version__
from dnnbrain_app.config import Config, RunOptions, Settings, build_config, count_cpus, find_setting, read_toml
from dnnbrain_app.errors import DnnbrainError, UsageError
from dnnbrain_app.session import STEP

LEVELS = ("stimulus", "participant", "group")
INTERRUPTED = 130
DASHES = ("\N{EN DASH}", "\N{EM DASH}", "\N{MINUS SIGN}")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of the command line and the setting it fills; help, type and choices come from the setting."""

    names: tuple[str, ...]
    setting: str
    section: str
    metavar: str | None = None


FLAGS = (
    Flag(("--participant-label",), "dataset.participants", "What to analyse", "LABEL..."),
    Flag(("--session-label", "--session-id"), "dataset.sessions", "What to analyse", "LABEL..."),
    Flag(("-t", "--task-id", "--task-label"), "dataset.tasks", "What to analyse", "LABEL..."),
    Flag(("--run-label", "--run-id", "--run-index"), "dataset.runs", "What to analyse", "N..."),
    Flag(("--space",), "dataset.spaces", "What to analyse", "SPACE..."),
    Flag(("--bids-filter-file",), "dataset.bids_filter_file", "What to analyse", "FILE"),
    Flag(("-d", "--derivatives"), "dataset.derivatives", "What to analyse", "[NAME=]PATH"),
    Flag(("--bids-database-dir",), "dataset.bids_database_dir", "What to analyse", "DIR"),
    Flag(("--stimuli-dir",), "stimuli.directory", "Stimuli", "DIR"),
    Flag(("--stim-column",), "stimuli.column", "Stimuli", "NAME"),
    Flag(("--stim-map",), "stimuli.stim_map", "Stimuli", "FILE"),
    Flag(("--trial-filter",), "stimuli.trial_filter", "Stimuli", "CONDITION"),
    Flag(("--frame-rate",), "stimuli.frame_rate", "Stimuli", "HZ"),
    Flag(("--stimulus-file",), "stimuli.file", "Stimuli", "FILE"),
    Flag(("--network",), "networks.names", "Networks", "NAME..."),
    Flag(("--layers",), "networks.layers", "Networks", "LAYER..."),
    Flag(("--dnn-mask",), "networks.dnn_mask", "Networks", "FILE"),
    Flag(("--pool",), "networks.pooling", "Networks", "[LAYER=]METHOD..."),
    Flag(("--weights",), "networks.weights", "Networks", "FILE"),
    Flag(("--weights-dir",), "networks.weights_dir", "Networks", "DIR"),
    Flag(("--device",), "networks.device", "Networks", "DEVICE"),
    Flag(("--batch-size",), "networks.batch_size", "Networks", "N"),
    Flag(("--precision",), "networks.precision", "Networks"),
    Flag(("--projection",), "networks.projection", "Networks", "N"),
    Flag(("--save-activations",), "networks.save_activations", "Networks"),
    Flag(("--analysis",), "run.analyses", "Analyses", "NAME..."),
    Flag(("--response-model",), "responses.model", "Analyses"),
    Flag(("--hrf",), "responses.hrf", "Analyses"),
    Flag(("--min-reliability",), "responses.min_reliability", "Analyses", "R"),
    Flag(("--atlas",), "dataset.atlas", "Analyses", "FILE"),
    Flag(("--roi",), "dataset.rois", "Analyses", "NAME=LABEL+LABEL..."),
    Flag(("--n-folds",), "encoding.n_folds", "Analyses", "N"),
    Flag(("--folds-by",), "encoding.folds_by", "Analyses", "NAME"),
    Flag(("--radius",), "searchlight.radius", "Analyses", "MM"),
    Flag(("--attribute",), "decoding.attributes", "Analyses", "NAME..."),
    Flag(("--random-seed",), "run.random_seed", "Analyses", "N"),
    Flag(("-w", "--work-dir"), "run.work_dir", "Resources and behaviour", "DIR"),
    Flag(("--clean-workdir",), "run.clean_work_dir", "Resources and behaviour"),
    Flag(("--n-cpus", "--nprocs", "--nthreads"), "run.n_cpus", "Resources and behaviour", "N"),
    Flag(("--omp-nthreads",), "run.omp_nthreads", "Resources and behaviour", "N"),
    Flag(("--mem", "--mem-mb"), "run.memory", "Resources and behaviour", "SIZE"),
    Flag(("--low-mem",), "run.low_mem", "Resources and behaviour"),
    Flag(("--resource-monitor",), "run.resource_monitor", "Resources and behaviour"),
    Flag(("--output-layout",), "run.output_layout", "Resources and behaviour"),
    Flag(("--stop-on-first-crash",), "run.stop_on_first_crash", "Resources and behaviour"),
    Flag(("--validate",), "run.validate", "Resources and behaviour"),
)
ACCEPTED = ("--skip-bids-validation", "--skip-bids-validator", "--notrack")  # there is nothing to skip


class BidsAppCommand(click.Command):
    """A command whose list options take several values after one flag, as BIDS-Apps' users write them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse typographic dashes, read ``--a_b`` as ``--a-b``, repeat each list flag before each of its values."""
        for i, token in enumerate(args):
            if token.startswith(DASHES):
                right = "--" + token.lstrip("".join(DASHES) + "-")
                raise UsageError(
                    f"{token!r} starts with a typographic dash, as word processors make them; type {right!r}"
                )
            if token.startswith("--"):
                name, equals, value = token.partition("=")
                args[i] = name.replace("_", "-") + equals + value
        many = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        return super().parse_args(ctx, repeat_flags(args, many))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Group the options under headings, in the order of the table."""
        heading = {flag.names[0]: flag.section for flag in FLAGS}
        sections: dict[str, list[tuple[str, str]]] = {flag.section: [] for flag in FLAGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(heading.get(param.opts[0], "Other"), []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def repeat_flags(args: Sequence[str], many: set[str]) -> list[str]:
    """Turn ``--flag A B`` into ``--flag A --flag B`` for every flag that takes a list.

    A list ends at the next flag, at the name of a level, or, while the level is to come, after its first value at what
    looks like a path.

    Examples
    --------
    >>> repeat_flags(["--participant-label", "01", "02", "/data", "/out", "participant"], {"--participant-label"})
    ['--participant-label', '01', '--participant-label', '02', '/data', '/out', 'participant']
    """
    out: list[str] = []
    flag, taken, placed = "", 0, False
    for token in [*args, "--"]:  # the end of the list is the end of the last flag
        ends = token.startswith("-") or token in LEVELS
        if flag and not ends and (placed or not taken or "/" not in token or "=" in token):
            out += [flag, token]
            taken += 1
            continue
        if flag and not taken:
            raise UsageError(f"{flag} needs a value")
        placed = placed or token in LEVELS
        flag, taken = (token if token in many else ""), 0
        out += [] if flag else [token]
    return out[:-1]


def _option(flag: Flag) -> Callable[[Any], Any]:
    declared, kind = find_setting(flag.setting)
    many = get_origin(kind) is tuple
    choices = declared.metadata.get("choices")
    named = [k for k in get_args(kind) if k not in (type(None), Ellipsis)] or [kind]
    settings: dict[str, Any] = {"help": declared.metadata["doc"], "default": None, "multiple": many}
    if named[0] is bool:
        settings = {"help": declared.metadata["doc"], "default": None, "is_flag": True}
    elif choices:
        settings["type"] = click.Choice([str(choice) for choice in choices])
    elif named[0] in (int, float):
        settings["type"] = named[0]
    if flag.metavar:
        settings["metavar"] = flag.metavar
    return click.option(*flag.names, flag.setting.replace(".", "__"), **settings)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag in reversed(FLAGS):
        command = _option(flag)(command)
    return command


@click.command(
    cls=BidsAppCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: dnnbrain /data /out participant --participant-label 01 02 --network efficientnet_lite0",
)
@click.argument("bids_dir", type=click.Path(path_type=Path), required=False)
@click.argument("output_dir", type=click.Path(path_type=Path), required=False)
@click.argument("analysis_level", type=click.Choice(LEVELS), required=False)
@_options
@click.option("--mem-gb", "mem_gb", metavar="N", help="Memory to use, in GB.")
@click.option(
    "--config-file", type=click.Path(path_type=Path), metavar="FILE", help="Settings in TOML; flags win over it."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done and what it would take; write nothing.")
@click.option("--reports-only", is_flag=True, help="Build the reports again from the results that are there.")
@click.option(
    "--boilerplate-only", "--boilerplate", "--md-only-boilerplate", is_flag=True, help="Write the methods text only."
)
@click.option("--list-networks", is_flag=True, help="List the networks that can be named, and stop.")
@click.option("--list-layers", metavar="NETWORK", help="List the layers of a network, and stop.")
@click.option(
    "--fetch-weights",
    metavar="NETWORK...",
    multiple=True,
    help="Download the weights of networks into --weights-dir or TORCH_HOME, check them, and stop.",
)
@click.option(*ACCEPTED, "accepted", is_flag=True, expose_value=False, hidden=True)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv: everything.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
@click.version_option(__version__, "--version", prog_name="dnnbrain")
def command(**given: Any) -> int:
    """Map deep neural networks to brains.

    BIDS_DIR is the raw dataset (read only), OUTPUT_DIR the derivative to write, ANALYSIS_LEVEL is participant, or
    stimulus: the networks look at the whole stimulus set, and no participant is needed; or group: how far the
    participants whose responses are in OUTPUT_DIR respond alike.
    """
    set_up_logging(given["verbose"], quiet=given["quiet"])
    places = [given[name] for name in ("bids_dir", "output_dir", "analysis_level")]
    listing = given["list_networks"] or given["list_layers"] is not None or given["fetch_weights"]
    if not listing and None in places:
        raise UsageError("write the three arguments first: dnnbrain BIDS_DIR OUTPUT_DIR participant [OPTIONS]")
    layers = [read_toml(given["config_file"])] if given["config_file"] else []
    config = build_config(*([Path(), Path(), "participant"] if listing else places), *layers, collect_flags(given))
    set_up_environment(config.run)
    return dispatch(config, given)


def dispatch(config: Config, given: dict[str, Any]) -> int:
    """Do what was asked for; returns the exit code."""
    # not before: they must not slow --help, and the number of threads is set by now
    from dnnbrain_app import planning, reporting

    if given["list_networks"]:
        click.echo(planning.list_networks())
    elif given["list_layers"]:
        click.echo(planning.list_layers(given["list_layers"], config.networks))
    elif given["fetch_weights"]:
        click.echo(planning.fetch_weights(given["fetch_weights"], config.networks, Progress()))
    elif given["dry_run"]:
        click.echo(planning.plan(config))
    elif given["boilerplate_only"]:
        click.echo(reporting.write_boilerplate(config))
    else:
        return run_level(config, reports_only=given["reports_only"])
    return 0


def run_level(config: Config, *, reports_only: bool) -> int:
    """Analyse, or make the reports of what was analysed; returns the exit code."""
    from dnnbrain_app import workflow

    if reports_only:
        if config.level != "participant":
            raise UsageError(f"--reports-only: the {config.level} level writes tables and maps, but no report")
        return workflow.rebuild_reports(config, command_line=sys.argv)
    levels = {
        "stimulus": workflow.run_stimuli,
        "participant": workflow.run_participants,
        "group": workflow.run_group,
    }
    return levels[config.level](config, command_line=sys.argv, progress=Progress())


def collect_flags(given: dict[str, Any]) -> Settings:
    """Turn the flags that were given into settings."""
    settings: Settings = {}
    for flag in FLAGS:
        section, _, key = flag.setting.partition(".")
        value = given[f"{section}__{key}"]
        if value not in (None, ()):
            settings.setdefault(section, {})[key] = (
                list(value) if isinstance(value, tuple) else _as_declared(flag, value)
            )
    if given["mem_gb"]:
        settings.setdefault("run", {})["memory"] = f"{given['mem_gb']}G"
    return settings


def _as_declared(flag: Flag, value: Any) -> Any:
    """Give a choice back the type its setting has (click compares choices as text)."""
    kind = find_setting(flag.setting)[1]
    return int(value) if kind is int else value


def set_up_environment(run: RunOptions) -> None:
    """Bind threads and caches before a numerical library is imported; nothing may write to HOME."""
    threads = str(run.omp_nthreads or count_cpus(run))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = threads
    cache = run.work_dir.absolute() / "cache"
    for name in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        os.environ.setdefault(name, str(cache))
    os.environ["MPLBACKEND"] = "Agg"


def set_up_logging(verbose: int, *, quiet: bool) -> None:
    """Send the log to stderr: steps by default, more with -v, warnings only with -q."""
    level = logging.WARNING if quiet else (STEP, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.addLevelName(STEP, "")
    logger = logging.getLogger("dnnbrain_app")
    logger.handlers.clear()
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logger.addHandler(handler)
    logger.setLevel(level)
    logging.captureWarnings(capture=True)
    logging.getLogger("nibabel.global").setLevel(logging.ERROR)  # it remarks on every CIFTI header


class _Lines(logging.Formatter):
    """``12:34:56 message``, with the level's name for warnings and worse."""

    def format(self, record: logging.LogRecord) -> str:
        name = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{time.strftime('%H:%M:%S')} {name}{record.getMessage()}"


class Progress:
    """How far a piece of work is, and how long it will take: one line that moves, or a line now and then in a log."""

    def __init__(self) -> None:
        self._label, self._start, self._shown, self._first = "", 0.0, 0.0, 0

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` is finished."""
        now, moving = time.monotonic(), sys.stderr.isatty()
        if label != self._label:
            self._label, self._start, self._shown, self._first = label, now, now, done  # what a former run did is free
        finished = total > 0 and done >= total
        if not finished and now - self._shown < (0.2 if moving else 15.0):
            return
        if not logging.getLogger("dnnbrain_app").isEnabledFor(STEP) or (finished and now - self._start < 1.0):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        text = f"         {label}: {done}/{total}" if total else f"         {label}: {done}"
        if total and not finished:
            text += f", {rate:.3g}/s, about {(total - done) / rate:.0f} s left" if rate else ", starting"
        click.echo(f"\r{text:<79}" if moving else text, err=True, nl=not moving or finished)


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong and leave."""
    click.echo(f"dnnbrain: {message}", err=True)
    sys.exit(code)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command; every failure ends here as one message and one exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the time limit of a queue: clean up as for Ctrl-C
    debug = "--debug" in (sys.argv[1:] if args is None else args)
    try:
        code = command.main(args=args, prog_name="dnnbrain", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; what was finished is kept, and the same command continues", INTERRUPTED)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    except DnnbrainError as error:
        if debug:
            traceback.print_exc()
        fail(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        fail(f"unexpected {type(error).__name__}: {error} (this is a bug; --debug shows where)", 1)
    sys.exit(code or 0)
