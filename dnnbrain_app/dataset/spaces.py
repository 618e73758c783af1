"""The spaces that preprocessed data come in, by name, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dnnbrain_app.errors import EmptySelectionError, UsageError
from dnnbrain_app.records import ImageFormat

_PRECEDENCE = ("fsLR", "fsaverage5", "fsaverage6", "fsaverage*", "fsnative", "MNI152NLin2009cAsym", "MNI*", "T1w", "*")
_QUALIFIERS = ("cohort", "res", "den")
_UNNAMED: dict[ImageFormat, str] = {"cifti": "fsLR", "gifti": "fsnative", "nifti": "boldref"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A space as one set of files has it: its label, family of files, and resolution or density.

    Parameters
    ----------
    name : str
        Label, also where the file name has none (``boldref``, ``fsLR``).
    format : {'cifti', 'gifti', 'nifti'}
        Family of files: grayordinates, surfaces, volumes. FreeSurfer's and AFNI's files belong to one of them as well.
    entities : tuple of (str, str)
        Of ``space``, ``cohort``, ``res``, ``den`` those in the file name, verbatim.
    """

    name: str
    format: ImageFormat
    entities: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """As ``--space`` takes it, e.g. ``fsLR:den-91k``."""
        return ":".join([self.name, *(f"{entity}-{label}" for entity, label in self.entities if entity != "space")])


def identify_variant(entities: Mapping[str, str]) -> Variant:
    """Tell the space of a preprocessed BOLD file, or of a mask or map beside it, from its entities."""
    family = _tell_family(entities)
    there = tuple((entity, entities[entity]) for entity in ("space", *_QUALIFIERS) if entity in entities)
    return Variant(entities.get("space", _UNNAMED[family]), family, there)


def _tell_family(entities: Mapping[str, str]) -> ImageFormat:
    extension = entities["extension"]
    if extension in (".dtseries.nii", ".dscalar.nii"):
        return "cifti"
    # FreeSurfer writes the values of a hemisphere as a volume of n x 1 x 1
    on_surface = extension.endswith(".gii") or (extension in (".mgh", ".mgz") and "hemi" in entities)
    return "gifti" if on_surface else "nifti"


def choose_variants(found: Iterable[Variant], asked: Sequence[str]) -> list[Variant]:
    """Choose the spaces to work in.

    Parameters
    ----------
    found : iterable of Variant
        Those of the data.
    asked : sequence of str
        ``--space``: a label, or a label with ``:res-``, ``:den-`` or ``:cohort-``. Empty: the first found in order of
        precedence.

    Returns
    -------
    list of Variant
        In the order asked for, without repetition.

    Raises
    ------
    EmptySelectionError
        If one is not there; those that are get listed.
    UsageError
        If one is there in several resolutions or densities.
    """
    variants = sorted(set(found), key=lambda variant: (variant.label, variant.format))
    if not asked:
        first = next(v.name for pattern in _PRECEDENCE for v in variants if fnmatchcase(v.name, pattern))
        return [_choose_one([v for v in variants if v.name == first], first)]
    return list(dict.fromkeys(_find_asked(variants, label.strip().removeprefix("space-")) for label in asked))


def _find_asked(variants: Sequence[Variant], label: str) -> Variant:
    name, *qualifiers = label.split(":")
    exact = [v for v in variants if v.label == label]
    fitting = [v for v in variants if v.name == name and set(qualifiers) <= set(v.label.split(":")[1:])]
    if not fitting:
        there = ", ".join(dict.fromkeys(v.label for v in variants))
        raise EmptySelectionError(f"--space {label}: no preprocessed data in this space; there are: {there}")
    return _choose_one(exact or fitting, label)


def _choose_one(variants: Sequence[Variant], label: str) -> Variant:
    if len(variants) > 1:
        choices = ", ".join(f"{v.label} ({v.format})" for v in variants)
        raise UsageError(
            f"space {label} is there in several forms: {choices}; "
            "say which with --space, or with the query bold of --bids-filter-file"
        )
    return variants[0]
