"""The output dataset itself: may it lie there, can it be written, and what does it say of itself."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dnnbrain_app.derivatives.files import format_json, update_text
from dnnbrain_app.derivatives.sidecars import read_json
from dnnbrain_app.errors import CannotWriteError, UsageError

logger = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"

# No slash at the end of a folder: the validator would then still complain of the folder itself.
BIDSIGNORE = """\
*.html
figures
log
group
*_statmap.*
*_relmat.*
*_design.*
"""

README = """\
# dnnbrain derivatives

How well the layers of deep neural networks explain brain responses to the same stimuli. Start with `sub-*.html`, the
report of a participant. In `sub-*/func` (or `sub-*/ses-*/func`):

* `*_stat-effect_desc-<model>_statmap.*`: responses to single trials or stimuli; the `.tsv` says what each map is
* `*_model-<network>_stat-r_desc-encoding_statmap.*`: correlation of predicted and measured responses to held-out
  stimuli, one map a layer
* `*_stat-rsquared_*`, `*_stat-alpha_*`, `*_stat-bestlayer_*`: of the same models the R squared, the ridge penalty and
  the number of the best layer (from 1; 0 is none)
* `*_seg-<atlas>*_desc-encoding_statmap.tsv`, `*_seg-<atlas>*_desc-rsa_statmap.tsv`: scores of regions
* `*_seg-<atlas>*_relmat.h5`, `*_model-<network>*_relmat.h5`: dissimilarities of stimuli (RDMs) in regions and layers
* `*_design.tsv`: design matrices

Maps hold 0 where there are no data, as outside the mask, and NaN where the data have no signal. The `.json` beside a
file says how it was made. `logs/CITATION.md` holds the methods in words, and what to cite.

These kinds of files have no name in BIDS yet; with the `.bidsignore` of this folder, `bids-validator-deno` passes it.
"""


def check_places(bids_dir: Path, output_dir: Path, work_dir: Path | None = None) -> None:
    """Refuse folders that would mix inputs and outputs, before anything is written.

    Raises
    ------
    UsageError
        The output folder is the raw dataset, holds it, or lies in it elsewhere than under ``derivatives/``; or the
        work folder is or lies in the raw dataset.
    """
    bids_dir, output_dir = bids_dir.resolve(), output_dir.resolve()
    derivatives = bids_dir / "derivatives"
    suggestion = f"use for example {derivatives / 'dnnbrain'}"
    if output_dir == bids_dir:
        raise UsageError(f"the output folder {output_dir} is the input dataset itself; {suggestion}")
    if bids_dir.is_relative_to(output_dir):
        raise UsageError(f"the output folder {output_dir} holds the input dataset {bids_dir}; {suggestion}")
    if output_dir.is_relative_to(bids_dir) and derivatives not in output_dir.parents:
        raise UsageError(f"the output folder {output_dir} lies among the raw data of {bids_dir}; {suggestion}")
    if work_dir is not None and work_dir.resolve().is_relative_to(bids_dir):
        raise UsageError(
            f"the work folder {work_dir} lies in the input dataset {bids_dir}; choose one outside with --work-dir"
        )


def check_writable(folder: Path) -> None:
    """Make a folder, and a file in it for a moment.

    Raises
    ------
    CannotWriteError
        With the reason, and what to do about it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CannotWriteError(
            f"cannot write to {folder} as user {os.getuid()}: {error.strerror}. In a container, mount the folder "
            "without :ro (docker -v FOLDER:/out, apptainer --bind FOLDER:/out) and run as its owner "
            "(docker -u $(id -u):$(id -g))."
        ) from error


def prepare_dataset(output_dir: Path, bids_dir: Path, links: Mapping[str, Path], version: str) -> None:
    """Make the output folder a BIDS derivative dataset, before the first result.

    Files are written only if their bytes would change, so any number of runs may prepare one folder at once. Links of
    earlier runs are kept.

    Parameters
    ----------
    output_dir : Path
        The output dataset; made if absent.
    bids_dir : Path
        The raw dataset.
    links : mapping of str to Path
        Root of each derivative read, by the name used in BIDS URIs.
    version : str
        Version of dnnbrain.

    Raises
    ------
    CannotWriteError
        The folder cannot be written.
    UsageError
        The folder is a dataset of something else.
    """
    check_writable(output_dir)
    path = output_dir / "dataset_description.json"
    description = describe_dataset(output_dir, bids_dir, links, version, os.environ)
    if path.exists():
        earlier = read_json(path)
        _check_owner(output_dir, earlier, version)
        description["DatasetLinks"] = {**(earlier.get("DatasetLinks") or {}), **description["DatasetLinks"]}
    update_text(path, format_json(description))
    update_text(output_dir / ".bidsignore", BIDSIGNORE)
    update_text(output_dir / "README.md", README)


def describe_dataset(
    output_dir: Path, bids_dir: Path, links: Mapping[str, Path], version: str, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Describe the output dataset: ``dataset_description.json``, with links relative to the dataset."""
    raw = read_json(bids_dir / "dataset_description.json")
    name = raw.get("Name") or bids_dir.resolve().name
    described = {
        "Name": f"dnnbrain derivatives of {name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": raw.get("License"),
        # the validator has a warning for fewer than two
        "Authors": [*(raw.get("Authors") or [f"The authors of {name}"]), "The dnnbrain developers"],
        "HowToAcknowledge": "Cite what logs/CITATION.md lists, at least Chen et al. (2020), https://doi.org/10.3389/fncom.2020.580632",
        "GeneratedBy": [{"Name": "dnnbrain", "Version": version, **_describe_container(environ)}],
        "SourceDatasets": _describe_source(raw),
        "DatasetLinks": {
            link: quote(os.path.relpath(root.resolve(), output_dir.resolve()))
            for link, root in {"raw": bids_dir, **links}.items()
        },
    }
    return {key: value for key, value in described.items() if value}


def _describe_source(raw: Mapping[str, Any]) -> list[dict[str, str]]:
    """Cite the raw dataset where it has a DOI; without one, ``DatasetLinks`` says all there is."""
    doi = str(raw.get("DatasetDOI", "")).removeprefix("https://doi.org/").removeprefix("doi:")
    return [{"DOI": f"doi:{doi}", "URL": f"https://doi.org/{doi}"}] if doi else []


def _describe_container(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Name the container: the image sets ``DNNBRAIN_IMAGE``, Apptainer the path of its file (only its name is kept)."""
    image = environ.get("DNNBRAIN_IMAGE")
    file = environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER")
    if file:
        return {"Container": {"Type": "singularity", "Tag": image or Path(file).name}}
    return {"Container": {"Type": "docker", "Tag": image}} if image else {}


def _check_owner(output_dir: Path, earlier: Mapping[str, Any], version: str) -> None:
    generators = earlier.get("GeneratedBy")
    generator = generators[0] if isinstance(generators, list) and generators else None
    if not isinstance(generator, dict) or generator.get("Name") != "dnnbrain":
        raise UsageError(
            f"the output folder {output_dir} is another dataset ({earlier.get('Name', 'unnamed')!r}); "
            f"choose a folder of its own, for example {output_dir / 'dnnbrain'}"
        )
    if generator.get("Version") != version:
        logger.warning("%s holds results of dnnbrain %s; this is %s", output_dir, generator.get("Version"), version)
