"""The settings of a run: one frozen options class a room, filled from defaults, a TOML file and flags, in this order.

Every setting is declared once, in its room's ``options.py``, with its type, default and a sentence; the command line,
the TOML reader, the saved configuration and the reference page are all made from there. An unknown key is an error.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

from dnnbrain_app.analyses.options import DecodingOptions, EncodingOptions, RsaOptions, SearchlightOptions
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.errors import MissingInputError, UnknownNameError, UsageError
from dnnbrain_app.networks.options import NetworkOptions
from dnnbrain_app.responses.options import ResponseOptions, check_options
from dnnbrain_app.stimuli.options import StimuliOptions

Settings = dict[str, dict[str, Any]]
ANALYSIS_NAMES = ("encoding", "rsa", "searchlight", "decoding")
RECORD = "environment"  # the table of a saved configuration that describes the run and is never read back


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Resources, places and behaviour of the run as a whole."""

    analyses: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": (
                "encoding (ridge, voxel by voxel), rsa (regions of the atlas), searchlight (RSA around each voxel), "
                "decoding (attributes of the stimuli from regions). Default: encoding, and rsa with an atlas."
            ),
            "choices": ANALYSIS_NAMES,
        },
    )
    work_dir: Path = field(
        default=Path("work"), metadata={"doc": "Folder for what can be computed again; shared by all runs."}
    )
    clean_work_dir: bool = field(
        default=False, metadata={"doc": "Remove this app's part of the work folder before starting."}
    )
    n_cpus: int = field(default=0, metadata={"doc": "Cores to use; 0: those granted to this process."})
    omp_nthreads: int = field(default=0, metadata={"doc": "Threads of one numerical operation; 0: as many as cores."})
    memory: str = field(
        default="", metadata={"doc": "Memory to use, e.g. 16G or 16000M. Default: 80 % of what is granted."}
    )
    low_mem: bool = field(default=False, metadata={"doc": "Trade speed for memory: use half of the memory allowed."})
    random_seed: int = field(default=2020, metadata={"doc": "Seed of everything that is drawn."})
    resource_monitor: bool = field(
        default=False, metadata={"doc": "Tell in the report how much time and memory the run took so far."}
    )
    output_layout: str = field(
        default="bids",
        metadata={
            "doc": "bids: into OUTPUT_DIR. multiverse: into OUTPUT_DIR/dnnbrain-<hash of the settings>.",
            "choices": ("bids", "multiverse"),
        },
    )
    stop_on_first_crash: bool = field(
        default=False, metadata={"doc": "Stop when a participant fails instead of going on with the next."}
    )
    validate: bool = field(
        default=False,
        metadata={"doc": "Run the official BIDS validator on BIDS_DIR first and stop (exit 16) when it finds errors."},
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a run; a room's function is given its own section only."""

    bids_dir: Path
    output_dir: Path
    level: str
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    stimuli: StimuliOptions = field(default_factory=StimuliOptions)
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    responses: ResponseOptions = field(default_factory=ResponseOptions)
    encoding: EncodingOptions = field(default_factory=EncodingOptions)
    rsa: RsaOptions = field(default_factory=RsaOptions)
    searchlight: SearchlightOptions = field(default_factory=SearchlightOptions)
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    run: RunOptions = field(default_factory=RunOptions)


SECTIONS: dict[str, type] = {
    "dataset": DatasetOptions,
    "stimuli": StimuliOptions,
    "networks": NetworkOptions,
    "responses": ResponseOptions,
    "encoding": EncodingOptions,
    "rsa": RsaOptions,
    "searchlight": SearchlightOptions,
    "decoding": DecodingOptions,
    "run": RunOptions,
}


def find_setting(path: str) -> tuple[dataclasses.Field[Any], Any]:
    """Return the declaration and the type of a setting named ``section.key``.

    Raises
    ------
    UnknownNameError
        If there is no such section or key; the nearest one is suggested.
    """
    section, _, key = path.partition(".")
    options = _find_section(section)
    fields = {f.name: f for f in dataclasses.fields(options)}
    if key not in fields:
        raise UnknownNameError(f"setting in [{section}]", key, fields)
    return fields[key], get_type_hints(options)[key]


def _find_section(name: str) -> type:
    if name not in SECTIONS:
        raise UnknownNameError("section of the configuration", name, SECTIONS)
    return SECTIONS[name]


def read_toml(path: Path) -> Settings:
    """Read settings from a TOML file; every key must exist.

    Raises
    ------
    MissingInputError, UsageError
        If the file is not there, is not TOML, or names a setting that does not exist.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInputError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    tables.pop(RECORD, None)
    for section, values in tables.items():
        if not isinstance(values, dict):
            raise UsageError(
                f"{path}: {section!r} stands outside a section; write it under one of {', '.join(SECTIONS)}"
            )
        _find_section(section)
        for key in values:
            find_setting(f"{section}.{key}")
    return tables


def build_config(bids_dir: Path, output_dir: Path, level: str, *layers: Settings) -> Config:
    """Make the configuration of a run; a later layer of settings wins over an earlier one.

    Raises
    ------
    UsageError
        If a value has the wrong type, is not among the choices, or names an unknown setting.
    """
    merged: Settings = {section: {} for section in SECTIONS}
    for layer in layers:
        for section, values in layer.items():
            for key, value in values.items():
                declared, kind = find_setting(f"{section}.{key}")
                merged[section][key] = _coerce(f"{section}.{key}", value, kind, declared.metadata)
    sections = {name: options(**merged[name]) for name, options in SECTIONS.items()}
    config = Config(bids_dir=bids_dir, output_dir=output_dir, level=level, **sections)
    _check(config)
    return config


def dump_toml(config: Config, record: Mapping[str, Any] | None = None) -> str:
    """Write a configuration as TOML that ``--config-file`` reads back to the same settings.

    Parameters
    ----------
    config : Config
        The settings.
    record : mapping, optional
        What else to keep about the run (versions, command line): goes into a table that is never read back.
    """
    tables: dict[str, Any] = {}
    for section in SECTIONS:
        values = dataclasses.asdict(getattr(config, section))
        tables[section] = {key: _plain(value) for key, value in values.items() if value is not None}
    places = {"bids_dir": config.bids_dir, "output_dir": config.output_dir, "analysis_level": config.level}
    tables[RECORD] = {key: _plain(value) for key, value in {**places, **(record or {})}.items()}
    return tomli_w.dumps(tables)


def parse_memory(text: str) -> int:
    """Read an amount of memory, in bytes; a bare number is in MB, as in fMRIPrep.

    Examples
    --------
    >>> parse_memory("16G"), parse_memory("1.5 gb"), parse_memory("16000")
    (17179869184, 1610612736, 16777216000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)I?B?\s*", text.upper())
    if match is None:
        raise UsageError(f"memory {text!r} is not an amount; write it as 16G, 16000M or 0.5T")
    number, unit = float(match[1]), match[2]
    if not unit and number < 512:
        raise UsageError(f"memory {text!r} would be {number:g} MB; did you mean {match[1]}G?")
    return int(number * 1024 ** {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}[unit])


def count_cpus(options: RunOptions) -> int:
    """Cores to use: as asked, else those granted by affinity, cgroup and Slurm, whichever are fewest."""
    if options.n_cpus > 0:
        return options.n_cpus
    granted = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    quota = _read_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        granted.append(max(1, int(quota[0]) // int(quota[1])))
    if os.environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        granted.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(granted))


def measure_memory(options: RunOptions) -> int:
    """Memory to use, in bytes: as asked, else 80 % of what the machine, the cgroup or Slurm grants."""
    if options.memory:
        allowed = parse_memory(options.memory)
    else:
        granted = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            words = _read_words(file)
            if words and words[0].isdigit():
                granted.append(int(words[0]))
        for name, share in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", count_cpus(options))):
            if os.environ.get(name, "").isdigit():
                granted.append(int(os.environ[name]) * share * 1024**2)
        allowed = int(0.8 * min(granted))
    return allowed // 2 if options.low_mem else allowed


def _read_words(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="ascii").split()
    except OSError:
        return []


def _coerce(name: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> Any:
    if get_origin(kind) is tuple:
        items = list(value) if isinstance(value, list | tuple) else [value]
        if "prefix" in metadata:
            items = list(_expand_labels(items, metadata["prefix"]))
        coerced = [
            _coerce(name, item, get_args(kind)[0], {k: v for k, v in metadata.items() if k == "choices"})
            for item in items
        ]
        return tuple(coerced if metadata.get("repeats") else dict.fromkeys(coerced))
    wanted = next((k for k in get_args(kind) if k is not type(None)), kind)
    if wanted is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f"{name} = {value!r} must be of type {wanted.__name__}")
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise UnknownNameError(f"value of {name}", str(value), [str(choice) for choice in choices])
    return value


def _expand_labels(items: list[Any], prefix: str) -> list[Any]:
    """Split commas, read files of labels, drop the BIDS prefix; what is no label is left to be refused."""
    labels: list[Any] = []
    for item in items:
        if isinstance(item, str):
            labels += [word.removeprefix(prefix) for word in _read_labels(item)]
        else:
            labels.append(str(item) if type(item) is int else item)
    return labels


def _read_labels(text: str) -> list[str]:
    try:
        return Path(text).read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # the text is the list itself
        return text.replace(",", " ").split()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check(config: Config) -> None:
    """Refuse settings that contradict themselves, before any work is done."""
    encoding, networks, run = config.encoding, config.networks, config.run
    if run.memory:
        parse_memory(run.memory)
    if not networks.names:
        raise UsageError("networks.names is empty; name at least one network with --network")
    for name, value, least in (
        ("encoding.n_folds", encoding.n_folds, 2),
        ("encoding.n_alphas", encoding.n_alphas, 1),
        ("encoding.n_null", encoding.n_null, 1000),
        ("encoding.n_permutations", encoding.n_permutations, 0),
        ("rsa.n_permutations", config.rsa.n_permutations, 0),
        ("rsa.n_bootstraps", config.rsa.n_bootstraps, 0),
        ("searchlight.n_permutations", config.searchlight.n_permutations, 0),
        ("decoding.n_permutations", config.decoding.n_permutations, 0),
        ("decoding.n_components", config.decoding.n_components, 0),
        ("decoding.n_folds", config.decoding.n_folds, 2),
        ("networks.batch_size", networks.batch_size, 1),
        ("networks.projection", networks.projection, 0),
        ("networks.clip_frames", networks.clip_frames, 1),
        ("networks.image_size", networks.image_size, 1),
        ("networks.n_top", networks.n_top, 1),
        ("run.random_seed", run.random_seed, 0),
        ("run.n_cpus", run.n_cpus, 0),
        ("responses.compcor", config.responses.compcor, 0),
        ("responses.high_pass", config.responses.high_pass, 0),
        ("responses.fd_threshold", config.responses.fd_threshold, 0),
        ("responses.fir_length", config.responses.fir_length, 0),
    ):
        if value < least:
            raise UsageError(f"{name} = {value} must be at least {least}")
    _check_ranges(config)
    if config.level != "participant" and run.analyses:
        knows = "the stimulus level knows no brain" if config.level == "stimulus" else "the group level has responses"
        raise UsageError(f"--analysis {' '.join(run.analyses)} relates networks to brains; {knows}")
    check_options(config.responses)
    _check_networks(networks)


def _check_ranges(config: Config) -> None:
    encoding = config.encoding
    if not 0 < config.stimuli.frame_rate <= 1000:
        raise UsageError(f"stimuli.frame_rate = {config.stimuli.frame_rate:g} must be above 0, in frames a second")
    if not config.rsa.comparisons:
        raise UsageError("rsa.comparisons is empty; name at least one, such as rho-a")
    if not 0 < config.searchlight.radius < math.inf:
        raise UsageError(f"searchlight.radius = {config.searchlight.radius:g} must be above 0, in mm")
    if not 0 < encoding.ceiling_floor < 1:
        raise UsageError(f"encoding.ceiling_floor = {encoding.ceiling_floor:g} must be above 0 and below 1")
    if not 0 <= config.responses.min_reliability < 1:
        raise UsageError(f"responses.min_reliability = {config.responses.min_reliability:g} must be from 0 to below 1")
    if not 0 < encoding.alpha_min <= encoding.alpha_max < math.inf:
        raise UsageError(
            f"encoding.alpha_min = {encoding.alpha_min:g} and alpha_max = {encoding.alpha_max:g} "
            "must be positive, finite and in order"
        )


def _check_networks(networks: NetworkOptions) -> None:
    if networks.weights is not None and len(networks.names) > 1:
        raise UsageError(
            f"--weights {networks.weights} is for one network, but {len(networks.names)} are named; run them one by one"
        )
    if networks.dnn_mask is not None and networks.layers != ("main",):
        raise UsageError(f"--dnn-mask {networks.dnn_mask} names the layers itself; leave --layers out")
    for name, values in (("networks.mean", networks.mean), ("networks.std", networks.std)):
        if len(values) != 3 or not all(map(math.isfinite, values)):
            raise UsageError(f"{name} = {list(values)} must be three numbers, one for each of red, green and blue")
    if min(networks.std) <= 0:
        raise UsageError(f"networks.std = {list(networks.std)} must be positive")
