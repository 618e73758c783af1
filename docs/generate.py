"""Write the pages of `docs/reference` from the code, so that they cannot tell something else than it does.

    python docs/generate.py

A test fails when a page in the repository is not what this would write.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click

from dnnbrain_app import cli, config, encoding_stage, errors, group_stages, response_stages
from dnnbrain_app.derivatives import maps, names
from dnnbrain_app.records import Run, Unit

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code: change it there. -->"

EXAMPLE = {"sub": "01", "task": "objects", "space": "fsLR", "den": "91k"}
NETWORK, ATLAS, RUN_ID = "efficientnetlite0", "mmp", "20260102-030405_<id>"
SIDECAR = {
    "Description": "what the file holds, in a sentence",
    "Sources": "the files it was computed from, as BIDS URIs",
    "SpatialReference, Resolution, Density, SkullStripped": "where an image lies",
    "Maps": "the names of the maps, in the order of the file (NIfTI has them nowhere else)",
    "Statistic, Units": "what the numbers are",
    "Network, Weights, Layers": "the network; name, SHA-256, licence and transform of its weights; its layers",
    "CrossValidation": "folds, what was kept together, seed, how the penalty was chosen",
    "Parameters": "the settings of the analysis, as the configuration spells them",
    "SoftwareVersions": "dnnbrain, Python and the packages that the numbers depend on",
}


def generate() -> dict[str, str]:
    """Make the pages.

    Returns
    -------
    dict of str to str
        Content by file name in ``docs/reference``.
    """
    return {
        "command-line.md": describe_command_line(),
        "configuration.md": describe_configuration(),
        "outputs.md": describe_outputs(),
        "exit-codes.md": describe_exit_codes(),
    }


# Command line ---------------------------------------------------------------------------------------------------------


def describe_command_line() -> str:
    """Make the page of flags, in the order and under the headings of ``--help``."""
    sections: dict[str, list[tuple[str, ...]]] = {flag.section: [] for flag in cli.FLAGS}
    settings = {flag.names[0]: flag for flag in cli.FLAGS}
    context = cli.command.make_context("dnnbrain", [], resilient_parsing=True)
    for option in cli.command.get_params(context):
        if not isinstance(option, click.Option) or option.hidden:
            continue
        flag = settings.get(option.opts[0])
        spelt = f"{_code(*option.opts)} {_escape(option.make_metavar(context)) if _takes_value(option) else ''}"
        setting = f"[{flag.setting}](configuration.md#{flag.setting.partition('.')[0]})" if flag else ""
        sections.setdefault(flag.section if flag else "Other", []).append(
            (spelt.strip(), _escape(option.help or ""), setting)
        )
    usage = " ".join(["dnnbrain", *cli.command.collect_usage_pieces(context)])
    tables = [f"## {title}\n\n{_table(('Flag', 'Meaning', 'Setting'), rows)}" for title, rows in sections.items()]
    return _page(
        "Command line",
        f"```text\n{usage}\n```",
        "`BIDS_DIR` is the raw dataset; it is only read. `OUTPUT_DIR` is the derivative dataset to write. The third "
        f"argument is the level: {_code(*cli.LEVELS)}.",
        "A flag whose value ends in `...` takes a list: several values after it (`--participant-label 01 02`), or the "
        "flag again before each. `--atlas` and `--derivatives` can be given several times, too. Labels of "
        "participants, sessions, tasks and runs may also be joined by commas, or stand in a text file whose name is "
        "given. `--a_b` is read as `--a-b`.",
        "The last column names the same setting in the [configuration file](configuration.md), where its default is.",
        *tables,
    )


def _takes_value(option: click.Option) -> bool:
    return not option.is_flag and not option.count


# Configuration --------------------------------------------------------------------------------------------------------


def describe_configuration() -> str:
    """Make the page of settings, one table for each room's options."""
    flags = {flag.setting: flag.names for flag in cli.FLAGS}
    tables = []
    for section, options in config.SECTIONS.items():
        hints = get_type_hints(options)
        rows = [
            (
                _code(field.name),
                _name_type(hints[field.name]),
                _spell(field.default),
                _code(*map(str, field.metadata.get("choices", ()))),
                _escape(field.metadata["doc"]),
                _code(*flags.get(f"{section}.{field.name}", ())),
            )
            for field in dataclasses.fields(options)
        ]
        head = ("Key", "Type", "Default", "Choices", "Meaning", "Flag")
        tables.append(f"## {section}\n\n{_escape(_first_paragraph(options))}\n\n{_table(head, rows)}")
    return _page(
        "Configuration file",
        "Settings come from their defaults, then from a TOML file named by `--config-file`, then from flags; the later "
        "wins. A key or section that does not exist is an error, and the nearest name is suggested.",
        '```toml\n[networks]\nnames = ["efficientnet_lite0"]\nlayers = ["blocks.*"]\n\n[encoding]\nn_folds = 5\n```',
        "Each run of the app saves what it resolved in `OUTPUT_DIR/logs/<run id>/config.toml`. That file can be "
        f"given to `--config-file` as it is: its table `[{config.RECORD}]` (versions, command line, places) is "
        "not read back.",
        *tables,
    )


def _name_type(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"list of {_name_type(get_args(kind)[0])}"
    wanted = next((part for part in get_args(kind) if part is not type(None)), kind)
    return {Path: "path", str: "text", int: "whole number", float: "number", bool: "true or false"}[wanted]


def _spell(default: Any) -> str:
    if default in (None, "", ()):
        return "none"
    if isinstance(default, tuple):
        return _code(*map(str, default))
    return _code(str(default).lower() if isinstance(default, bool) else str(default))


# Outputs --------------------------------------------------------------------------------------------------------------


def describe_outputs() -> str:
    """Make the page of files, with names that the table of names itself gave to an example."""
    scheme = inspect.cleandoc(names.__doc__ or "").partition("::\n\n")[2].partition("\n\nMaps are")[0]
    extensions = [(_code(kind), _code(extension)) for kind, extension in maps.EXTENSIONS.items()]
    stats = [(_code(stat), _escape(text)) for stat, text in encoding_stage.ENCODING_MAPS.items()]
    units = [(_code(scaling), _escape(text)) for scaling, text in response_stages.BETA_UNITS.items()]
    responses = [(_code(stat), _escape(text)) for stat, text in response_stages.RESPONSE_MAPS.items()]
    ceilings = [(_code(stat), _escape(text)) for stat, text in group_stages.CEILING_MAPS.items()]
    return _page(
        "Outputs",
        "`OUTPUT_DIR` is a BIDS derivative dataset. All names come from one table:",
        f"```text\n{_cut_column(inspect.cleandoc(scheme), names.encoding_map.__name__)}\n```",
        "Entities such as `space`, `res`, `den`, `ses` and `acq` are those of the input; `run` is absent where runs "
        "were combined. Labels hold letters and digits only: `efficientnet_lite0` becomes `efficientnetlite0`.",
        "## Files\n\nAn example: participant 01, task objects, space fsLR (CIFTI), network efficientnet_lite0, an "
        "atlas called mmp.",
        *_list_files(),
        "Maps have the format of the data. GIFTI maps are two files, with `hemi-L` and `hemi-R`.\n\n"
        + _table(("Data", "Maps"), extensions),
        "A map holds 0 where there are no data (outside the mask) and NaN where the data have no signal.",
        "## Encoding maps\n\n`r`, `rsquared` and `alpha` have one map a layer, named by the layer; `bestlayer` has one "
        "map.\n\n" + _table(("`stat-`", "Value"), stats),
        "## Betas\n\nOne map a trial or, by `condition`, a stimulus; none by `timeseries`. The `.tsv` of the same name "
        "has one row a map: `run`, `onset` (s), `duration` (s), `stimulus`, `repeat` (from 0). The unit depends on "
        "`responses.scaling`:\n\n" + _table(("`scaling`", "Unit"), units),
        "## Maps of responses\n\nOne map each. The first three are there where stimuli repeat, the others by "
        "`glmsingle`.\n\n" + _table(("`stat-`", "Value"), responses),
        "## Maps of the group\n\n" + _table(("`stat-`", "Value"), ceilings),
        "## Tables of regions\n\nOne row for each region and layer: `region`, `layer`, `depth` (the layer's place in "
        "the forward pass, from 1), then the scores. Encoding: `r` and `rsquared`, means over the region's voxels, "
        "and `n_voxels`, the voxels with a score. RSA: a column for each comparison.",
        "## RDMs\n\nHDF5, in the layout of the original DNNBrain's `.rdm.h5`: a dataset for each region or layer, "
        "which holds the upper triangle row by row. Attributes of the file: `type` (`bRDM` regions, `dRDM` layers), "
        "`metric`, `items` (the stimuli), `order` (of the datasets).",
        "## Sidecars\n\nBeside each image, table and matrix lies a `.json`. Its keys, where they apply:\n\n"
        + _table(("Key", "Content"), [(_code(*keys.split(", ")), text) for keys, text in SIDECAR.items()]),
        "## BIDS\n\nBIDS has no names yet for these kinds of maps, matrices and tables. The `.bidsignore` of the "
        "output lists them; with it, `bids-validator-deno` passes the dataset.",
    )


def _cut_column(text: str, word: str) -> str:
    """Leave out the last column, which says what the functions are called; `word` is in it."""
    lines = text.splitlines()
    start = next(line.index(word) for line in lines if word in line)
    return "\n".join(line[:start].rstrip() for line in lines)


def _list_files() -> Iterator[str]:
    """Call the functions of the table of names, all with the same example."""
    root = Path()
    run = Run({"sub": "01", "task": "objects", "run": "1"}, (Path("bold"),), Path("events"), None, None, 2.0, 0.0, 100)
    unit = Unit("01", "objects", "fsLR", EXAMPLE, (run,))
    image = maps.EXTENSIONS["cifti"]
    files = {
        names.report(root, "01"): "The report of a participant, over all tasks and spaces of the last run of the app.",
        names.encoding_map(root, unit, NETWORK, f"{{{','.join(names.ENCODING_STATS)}}}"): "Encoding maps, see below.",
        names.region_table(root, unit, ATLAS, NETWORK, "encoding"): "Encoding scores of regions, by layer.",
        names.region_table(root, unit, ATLAS, NETWORK, "rsa"): "RSA of regions, by layer.",
        names.region_rdms(root, unit, ATLAS): "RDMs of the regions of an atlas.",
        names.layer_rdms(
            root, unit, NETWORK
        ): "RDMs of the layers, for the unit's stimuli; they lie in no brain space.",
        names.beta_map(root, unit, "lss"): "Betas: the responses to single trials or stimuli.",
        names.beta_trials(root, unit, "lss"): "What each of the betas is.",
        names.response_map(
            root, unit, "lss", f"{{{','.join(names.RESPONSE_STATS)}}}"
        ): "How good the responses are, and what was chosen to estimate them, see below.",
        names.design_table(root, run): "Design matrix of a run: frame time, one column a trial, nuisance regressors.",
        names.group_map(
            root, {key: label for key, label in EXAMPLE.items() if key != "sub"}, "lss", "lowerceiling"
        ): "How far participants respond alike, see below; by the group level.",
        names.figures_folder(root, "01") / "*": "The report's figures, as SVG and PNG.",
        names.activations(root, NETWORK, "0123456789ab"): "With `--save-activations`: the activations of all layers, "
        "in the original DNNBrain's layout; participants who saw the same stimuli share the file.",
        names.citation(root): "The methods in words, and what to cite; of the last run of the app.",
        names.config_file(root, RUN_ID): "The resolved configuration of one run of the app.",
        names.status_file(root, unit): "Which stages are done, with which key; the app reads it to know what to skip.",
        names.crash_file(root, "01", RUN_ID, unit.label): "The traceback of what failed.",
    }
    for path, text in files.items():
        extension = image if path.name.endswith("_statmap") else ""
        yield f"`{path}{extension}`\n: {text}"


# Exit codes -----------------------------------------------------------------------------------------------------------


def describe_exit_codes() -> str:
    """Make the page of exit codes from the tree of failures."""
    told = dict(re.findall(r"(\w+Error) +\d+ +(.+)", errors.__doc__ or ""))
    rows = [(0, "", "every output that was asked for is there")]
    rows += [(kind.exit_code, _code(kind.__name__), _escape(told[kind.__name__])) for kind in _list_errors()]
    rows.append((cli.INTERRUPTED, "", "interrupted (Ctrl-C); what was finished is kept"))
    rows.sort(key=lambda row: row[0])
    return _page(
        "Exit codes",
        "Every failure is one message on stderr that names the thing, its value and what would be right. `--debug` "
        "adds the traceback.",
        _table(("Code", "Class", "Meaning"), [(str(code), *rest) for code, *rest in rows]),
        "A participant that fails does not stop the others (unless `--stop-on-first-crash` is given). If some units "
        "fail, the code is 1. If all fail with the same code, it is that code. The traceback of each is in "
        "`OUTPUT_DIR/sub-<label>/log/<run id>/crash-<unit>.txt`, and the message in the participant's report.",
        "To continue after any of them, give the same command again: [what is finished is not done "
        "twice](../how-to/resume-and-reuse.md).",
    )


def _list_errors(kind: type[errors.DnnbrainError] = errors.DnnbrainError) -> Iterator[type[errors.DnnbrainError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _list_errors(below)


# Markdown -------------------------------------------------------------------------------------------------------------


def _page(title: str, *blocks: str) -> str:
    return "\n\n".join([f"# {title}", NOTE, *blocks]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(*texts: str) -> str:
    return ", ".join("`" + text.replace("|", "\\|") + "`" for text in texts)


def _escape(text: str) -> str:
    """Make text of the code plain text of Markdown; what it has in backticks stays code."""
    text = text.replace("``", "`")
    parts = text.split("`")
    for i in range(0, len(parts), 2):
        for sign in ("\\", "*", "_", "<", "[", "|", "$"):
            parts[i] = parts[i].replace(sign, f"\\{sign}")
    return "`".join(parts)


def _first_paragraph(thing: Any) -> str:
    return " ".join(inspect.getdoc(thing).partition("\n\n")[0].split()).replace("``", "`")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in generate().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
