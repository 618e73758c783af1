"""The one table of names: what each output is called, and in which folder it lies.

::

    OUT/sub-<L>[/ses-<L>]/func/
      sub-<L>[_ses-<L>]_task-<T>[_..][_hemi-L|R]_space-<S>[_res-|_den-]
        _model-<net>_stat-<r|rsquared|bestlayer|..>_desc-encoding_statmap.<image>      encoding_map
        _stat-effect_desc-<lss|glmsingle|..>_statmap.<image> and .tsv                  beta_map, beta_trials
        _stat-<noiseceiling|ncsnr|..>_desc-<lss|..>_statmap.<image>                    response_map
      ..._space-<S>_seg-<atlas>[_res-|_den-]
        _model-<net>_desc-<encoding|rsa>_statmap.tsv                                   region_table
        _stat-<metric>_relmat.h5                                                       region_rdms
      sub-<L>[_ses-<L>]_task-<T>[_..]_model-<net>_stat-<metric>_relmat.h5              layer_rdms
      sub-<L>[_ses-<L>]_task-<T>[_run-<R>]_design.tsv                                  design_table
    OUT/sub-<L>.html   OUT/sub-<L>/figures/                                            report, figures_folder
    OUT/sub-<L>/log/<unit>.json   .lock                                                status_file, lock_file
    OUT/sub-<L>/log/report.json                                                        report_status
    OUT/sub-<L>/log/<run id>/crash-<name>.txt                                          crash_file
    OUT/logs/<run id>/config.toml   OUT/logs/CITATION.md                               config_file, citation
    OUT/group/func/
      group_task-<T>_space-<S>_stat-<lowerceiling|..>_desc-<lss|..>_statmap.<image>    group_map
    OUT/group/log/status.json   .lock   <run id>/crash-<group>.txt                     group_log
    OUT/stimuli/model-<net>/
      model-<net>_stimuli-<digest>.act.h5                                              activations
      model-<net>_stimuli-<digest>_desc-<channels|preferred>_features.tsv              channel_table
      model-<net>_stimuli-<digest>_stat-<metric>_relmat.h5                             stimulus_rdms
      log/status.json   .lock   <run id>/crash-<net>.txt                               network_log

Maps are named by their stem: `maps.write_maps` adds the hemisphere and the extension of the data's format. Beside each
image, table and matrix lies a ``.json`` (`sidecar`). BIDS has no ``stat``, ``model``, ``statmap``, ``relmat`` and
``design`` yet; the patterns of ``.bidsignore`` (see `dataset`) cover these suffixes, so a new kind of file needs one of
them or a line there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Run, Unit

# The order of BIDS 1.11; cohort and res/den stand as fMRIPrep writes them, model and stat as fitlins and nilearn do.
ENTITIES = (
    *("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run"),
    *("mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "cohort", "split", "recording", "chunk"),
    *("seg", "scale", "res", "den", "label", "model", "stat", "desc"),
)
SPACE_ENTITIES = ("space", "cohort", "res", "den")
ENCODING_STATS = ("r", "rsquared", "alpha", "bestlayer")
ENCODING_MORE = ("p", "q", "pfwe", "rnorm", "rsquarednorm", "depth", "bestr", "confidence")  # where they can be had
RESPONSE_STATS = ("noiseceiling", "ncsnr", "reliability", "hrf", "fraction")


def to_label(text: str) -> str:
    """Reduce a name to what a BIDS label may hold: letters and digits.

    Raises
    ------
    BadDataError
        Where nothing is left.

    Examples
    --------
    >>> to_label("efficientnet_lite0")
    'efficientnetlite0'
    """
    label = re.sub(r"[^0-9a-zA-Z]", "", text)
    if not label:
        raise BadDataError(f"{text!r} has no letter or digit (a-z, A-Z, 0-9) to name a file by")
    return label


def label_network(name: str) -> str:
    """Name a network in files; of a network in a file, the name of the file counts, not its folder.

    Examples
    --------
    >>> label_network("resnet50:IMAGENET1K_V1"), label_network("onnx:/data/models/my_net.onnx")
    ('resnet50IMAGENET1KV1', 'onnxmynet')
    """
    origin, colon, file = name.partition(":")
    if (colon and "/" in file) or file.endswith((".onnx", ".keras", ".h5")):
        name = origin + PurePath(file).name.partition(".")[0]
    return to_label(name)


def join_entities(entities: Mapping[str, str]) -> str:
    """Spell entities in the order of BIDS; one that BIDS does not know stands before ``hemi``, ``space`` and the rest.

    Examples
    --------
    >>> join_entities({"space": "fsLR", "task": "objects", "sub": "01", "hemi": "L"})
    'sub-01_task-objects_hemi-L_space-fsLR'
    """
    unknown = ENTITIES.index("hemi") - 0.5
    order = {name: float(i) for i, name in enumerate(ENTITIES)}
    return "_".join(f"{key}-{entities[key]}" for key in sorted(entities, key=lambda key: order.get(key, unknown)))


def output_path(root: Path, entities: Mapping[str, str], suffix: str, extension: str = "", **extra: str) -> Path:
    """Name an output of a participant.

    Parameters
    ----------
    root : Path
        The output dataset.
    entities : mapping
        Short keys and labels, at least ``sub``; with ``ses`` the file lies in the session's folder.
    suffix : str
        ``statmap``, ``relmat`` or ``design``.
    extension : str
        With its dot; empty for a stem.
    **extra : str
        More entities; they win.
    """
    entities = {**entities, **extra}
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    return root.joinpath(f"sub-{entities['sub']}", *session, "func", f"{join_entities(entities)}_{suffix}{extension}")


def add_entity(path: Path, key: str, label: str) -> Path:
    """Put one more entity into a name of ours, in its place.

    Examples
    --------
    >>> add_entity(Path("sub-01_space-fsaverage5_statmap"), "hemi", "L").name
    'sub-01_hemi-L_space-fsaverage5_statmap'
    """
    *pairs, suffix = path.name.split("_")
    first = [pair for pair in pairs if "-" not in pair]
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return path.with_name("_".join([*first, join_entities({**entities, key: label}), suffix]))


def sidecar(path: Path) -> Path:
    """Name the JSON beside a file or stem."""
    return path.with_name(path.name.split(".", 1)[0] + ".json")


def encoding_map(root: Path, unit: Unit, network: str, stat: str) -> Path:
    """Stem of one encoding map: `stat` is one of `ENCODING_STATS`."""
    return output_path(root, unit.entities, "statmap", model=network, stat=stat, desc="encoding")


def beta_map(root: Path, unit: Unit, response_model: str) -> Path:
    """Stem of the betas; the map names are the rows of `beta_trials`."""
    return output_path(root, unit.entities, "statmap", stat="effect", desc=to_label(response_model))


def beta_trials(root: Path, unit: Unit, response_model: str) -> Path:
    """Table that says what each beta map is."""
    return output_path(root, unit.entities, "statmap", ".tsv", stat="effect", desc=to_label(response_model))


def response_map(root: Path, unit: Unit, response_model: str, stat: str) -> Path:
    """Stem of a map of how good the responses are, or of what was chosen to estimate them: see `RESPONSE_STATS`."""
    return output_path(root, unit.entities, "statmap", stat=stat, desc=to_label(response_model))


def group_map(root: Path, entities: Mapping[str, str], response_model: str, stat: str) -> Path:
    """Stem of a map of the group's responses, ``lowerceiling`` or ``upperceiling``."""
    named = {**entities, "stat": stat, "desc": to_label(response_model)}
    return root / "group" / "func" / f"group_{join_entities(named)}_statmap"


def group_log(root: Path) -> Path:
    """Folder in which the group level notes what is done."""
    return root / "group" / "log"


def searchlight_map(root: Path, unit: Unit, network: str, stat: str) -> Path:
    """Stem of a searchlight map: ``similarity``, ``p``, ``q`` or ``pfwe``."""
    return output_path(root, unit.entities, "statmap", model=network, stat=stat, desc="searchlight")


def decoding_table(root: Path, unit: Unit, atlas: str) -> Path:
    """Table of what can be told of the stimuli from the regions of an atlas."""
    return output_path(root, unit.entities, "statmap", ".tsv", seg=to_label(atlas), desc="decoding")


def region_table(root: Path, unit: Unit, atlas: str, network: str, analysis: str) -> Path:
    """Table of an analysis (``encoding``, ``rsa``): one row a region and layer."""
    return output_path(root, unit.entities, "statmap", ".tsv", seg=to_label(atlas), model=network, desc=analysis)


def region_rdms(root: Path, unit: Unit, atlas: str, metric: str = "correlation") -> Path:
    """RDMs of the regions of an atlas."""
    return output_path(root, unit.entities, "relmat", ".h5", seg=to_label(atlas), stat=metric)


def layer_rdms(root: Path, unit: Unit, network: str, metric: str = "correlation") -> Path:
    """RDMs of the layers of a network for the unit's stimuli; they lie in no brain space."""
    entities = {key: label for key, label in unit.entities.items() if key not in SPACE_ENTITIES}
    return output_path(root, entities, "relmat", ".h5", model=network, stat=metric)


def design_table(root: Path, run: Run) -> Path:
    """Design matrix of one run."""
    return output_path(root, run.entities, "design", ".tsv")


def report(root: Path, participant: str) -> Path:
    """HTML report of a participant, over all of its units."""
    return root / f"sub-{participant}.html"


def report_status(root: Path, participant: str) -> Path:
    """File in which the `ledger` notes which results the report shows."""
    return _log_folder(root, participant) / "report.json"


def figures_folder(root: Path, participant: str) -> Path:
    """Folder of the report's figures."""
    return root / f"sub-{participant}" / "figures"


def status_file(root: Path, unit: Unit) -> Path:
    """File in which the `ledger` notes which stages of the unit are done."""
    return _log_folder(root, unit.participant) / f"{join_entities(unit.entities)}.json"


def lock_file(root: Path, unit: Unit) -> Path:
    """File whose lock keeps two processes from computing the same unit."""
    return status_file(root, unit).with_suffix(".lock")


def crash_file(root: Path, participant: str, run_id: str, name: str) -> Path:
    """Traceback of what failed: `name` is the unit, say."""
    return _log_folder(root, participant) / run_id / f"crash-{name}.txt"


def config_file(root: Path, run_id: str) -> Path:
    """File of the resolved configuration of a run of the app."""
    return root / "logs" / run_id / "config.toml"


def citation(root: Path) -> Path:
    """Methods text and references."""
    return root / "logs" / "CITATION.md"


def activations(root: Path, network: str, digest: str) -> Path:
    """Activations of the stimuli whose set has this `digest`: participants that saw the same share the file."""
    return root / "stimuli" / f"model-{network}" / f"model-{network}_stimuli-{digest[:12]}.act.h5"


def channel_table(root: Path, network: str, digest: str, kind: str) -> Path:
    """Table of a network's channels over the stimuli of this `digest`: ``channels``, or ``preferred`` stimuli."""
    stem = f"model-{network}_stimuli-{digest[:12]}_desc-{kind}_features.tsv"
    return root / "stimuli" / f"model-{network}" / stem


def stimulus_rdms(root: Path, network: str, digest: str, metric: str = "correlation") -> Path:
    """RDMs of a network's layers over the stimuli of this `digest`."""
    stem = f"model-{network}_stimuli-{digest[:12]}_stat-{metric}_relmat.h5"
    return root / "stimuli" / f"model-{network}" / stem


def network_log(root: Path, network: str) -> Path:
    """Folder in which the stimulus level notes what it has done with a network."""
    return root / "stimuli" / f"model-{network}" / "log"


def _log_folder(root: Path, participant: str) -> Path:
    return root / f"sub-{participant}" / "log"
