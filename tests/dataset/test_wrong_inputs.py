"""Inputs that users of other apps stumble over: each is read as it was meant, or refused with the file and a remedy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dnnbrain_app.dataset.confounds import read_confounds
from dnnbrain_app.dataset.headers import read_header
from dnnbrain_app.dataset.images import read_space, read_unit_space
from dnnbrain_app.dataset.index import find_units, list_participants
from dnnbrain_app.dataset.labels import pair_hemispheres, read_labels
from dnnbrain_app.dataset.options import DatasetOptions
from dnnbrain_app.errors import (
    BadDataError,
    DnnbrainError,
    EmptySelectionError,
    InputOutputError,
    MissingInputError,
    UsageError,
)


def labels_of(bids_dir: Path, **options: Any) -> list[str]:
    return [unit.label for unit in find_units(bids_dir, DatasetOptions(**options))]


class TestParticipants:
    @pytest.mark.parametrize("asked", ["02", "sub-02", " sub-02 "])
    def test_spelling(self, bids_dir: Path, asked: str) -> None:
        assert labels_of(bids_dir, participants=(asked,)) == labels_of(bids_dir)[1:]

    def test_asked_twice(self, bids_dir: Path) -> None:
        assert labels_of(bids_dir, participants=("01", "sub-01")) == labels_of(bids_dir)[:1]

    def test_only_ten_of_many_are_listed(self, bids_dir: Path) -> None:
        for number in range(3, 30):
            (bids_dir / f"sub-{number:02}").mkdir()
        with pytest.raises(
            MissingInputError, match=r"did you mean '29'\? Valid: 01, .*10, \.\.\. \(29 in all\)"
        ) as caught:
            labels_of(bids_dir, participants=("299",))
        assert caught.value.exit_code == 66

    def test_one_with_damaged_data_does_not_stop_the_others(self, bids_dir: Path) -> None:
        path = next(bids_dir.rglob("sub-01*run-2*preproc_bold.nii.gz"))
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(BadDataError, match=rf"{path.name}: cannot be read"):
            find_units(bids_dir, DatasetOptions())
        failures: dict[str, DnnbrainError] = {}
        units = find_units(bids_dir, DatasetOptions(), failures)
        assert [unit.participant for unit in units] == ["02"]
        assert list(failures) == ["sub-01"]
        assert isinstance(failures["sub-01"], BadDataError)

    def test_all_with_damaged_data(self, bids_dir: Path) -> None:
        for path in bids_dir.rglob("*preproc_bold.nii.gz"):
            path.write_bytes(b"")
        with pytest.raises(BadDataError, match="the file is empty"):
            find_units(bids_dir, DatasetOptions(), {})


class TestDescriptions:
    """A derivative need not be valid BIDS."""

    @pytest.mark.parametrize("content", [None, "", "{", "[]", '{"name": "fMRIPrep"}'])
    def test_absent_or_malformed(self, bids_dir: Path, content: str | None) -> None:
        expected = labels_of(bids_dir)
        for path in bids_dir.rglob("dataset_description.json"):
            path.unlink()
            if content is not None:
                path.write_text(content)
        assert labels_of(bids_dir) == expected

    def test_malformed_is_said(self, bids_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        (bids_dir / "dataset_description.json").write_text("{")
        assert labels_of(bids_dir)
        assert f"{bids_dir / 'dataset_description.json'}: cannot be read" in caplog.text


class TestFolders:
    def test_a_folder_that_may_not_be_read(self, bids_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir = os.scandir

        def deny(folder: Any) -> Any:
            if str(folder).endswith("fmriprep/sub-02/func"):
                raise PermissionError(13, "Permission denied", folder)
            return scandir(folder)

        monkeypatch.setattr(os, "scandir", deny)
        with pytest.raises(InputOutputError, match=r"sub-02/func: cannot be listed \(Permission denied\)") as caught:
            labels_of(bids_dir)
        assert caught.value.exit_code == 74
        assert labels_of(bids_dir, participants=("01",))  # what is not asked for is not looked at

    def test_a_root_that_may_not_be_read(self, bids_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(folder: Any) -> Any:
            raise PermissionError(13, "Permission denied", folder)

        monkeypatch.setattr(os, "scandir", deny)
        with pytest.raises(InputOutputError, match=rf"{bids_dir}: cannot be listed"):
            list_participants(bids_dir)

    def test_derivatives_of_one_name(self, bids_dir: Path) -> None:
        folder = bids_dir / "derivatives" / "fmriprep"
        with pytest.raises(UsageError, match=r"two are called 'fmriprep' .*NAME=PATH"):
            labels_of(bids_dir, derivatives=(str(folder), f"fmriprep={folder}"))

    def test_derivatives_without_participants(self, bids_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingInputError, match=rf"--derivatives {tmp_path / 'empty'}: no participants"):
            labels_of(bids_dir, derivatives=(str(tmp_path / "empty"),))

    def test_derivatives_anywhere(self, bids_dir: Path, tmp_path: Path) -> None:
        expected = labels_of(bids_dir)
        (bids_dir / "derivatives" / "fmriprep").rename(tmp_path / "a=b sub-99")
        for text in (str(tmp_path / "a=b sub-99"), f"prep={tmp_path / 'a=b sub-99'}"):
            assert labels_of(bids_dir, derivatives=(text,)) == expected


class TestDatabase:
    """pybids' traps: see test_index for a database of another dataset, or an older one."""

    def test_damaged(self, bids_dir: Path, tmp_path: Path) -> None:
        folder = tmp_path / "db"
        labels_of(bids_dir, bids_database_dir=folder)
        (folder / "layout_index.sqlite").write_bytes(b"not a database" * 100)
        with pytest.raises(UsageError, match=rf"--bids-database-dir {folder}: pybids cannot use it .*remove it"):
            labels_of(bids_dir, bids_database_dir=folder)


class TestFilters:
    @pytest.mark.parametrize("query", ["bold", "events", "mask", "confounds"])
    def test_a_query_that_selects_nothing(self, bids_dir: Path, query: str) -> None:
        path = bids_dir.parent / "filter.json"
        path.write_text(json.dumps({query: {"acquisition": "mb"}}))
        with pytest.raises(EmptySelectionError, match=rf'query {query} {{"acq": "mb"}} selects none of the') as caught:
            labels_of(bids_dir, bids_filter_file=path)
        assert caught.value.exit_code == 18

    def test_a_label_of_several_that_is_not_there(self, bids_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert [len(unit.runs) for unit in find_units(bids_dir, DatasetOptions(runs=("1", "7")))] == [1, 1]
        assert "--run-label: there is no run-7" in caplog.text


class TestAnnex:
    """Files of a datalad dataset that were not fetched are links to nowhere."""

    @staticmethod
    def drop(bids_dir: Path, pattern: str) -> Path:
        path = next(bids_dir.rglob(pattern))
        path.unlink()
        path.symlink_to("../../.git/annex/objects/gone")
        return path

    def test_mask(self, bids_dir: Path) -> None:
        path = self.drop(bids_dir, "sub-01*run-1*mask.nii.gz")
        with pytest.raises(MissingInputError, match=rf"{path.name}: its content is not here; fetch it with datalad"):
            read_unit_space(find_units(bids_dir, DatasetOptions())[0])

    def test_confounds(self, bids_dir: Path) -> None:
        path = self.drop(bids_dir, "sub-01*run-1*confounds*.tsv")
        with pytest.raises(MissingInputError, match=rf"{path.name}.*datalad get"):
            read_confounds(find_units(bids_dir, DatasetOptions())[0].runs[0])

    def test_sidecar(self, bids_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = self.drop(bids_dir, "sub-01*run-1*preproc_bold.json")
        assert find_units(bids_dir, DatasetOptions())[0].runs[0].repetition_time == 2.0  # of the header
        assert f"{path.name}: cannot be read" in caplog.text

    def test_a_sidecar_that_is_no_object(self, bids_dir: Path) -> None:
        next(bids_dir.rglob("sub-01*run-1*preproc_bold.json")).write_text("[1]")
        with pytest.raises(BadDataError, match=r"preproc_bold\.json: must be a JSON object"):
            find_units(bids_dir, DatasetOptions())


class TestImages:
    def test_masks_without_a_voxel_in_common(self, bids_dir: Path) -> None:
        unit = find_units(bids_dir, DatasetOptions())[0]
        for number, run in enumerate(unit.runs):
            mask = np.zeros((4, 3, 2))
            mask[number] = 1
            assert run.mask is not None
            nib.Nifti1Image(mask, nib.load(run.mask).affine).to_filename(run.mask)
        with pytest.raises(BadDataError, match=r"no voxel lies in the masks of all 2 runs, such as .*mask\.nii\.gz"):
            read_unit_space(unit)

    def test_a_mask_of_three_dimensions_and_one_more(self, bids_dir: Path) -> None:
        unit = find_units(bids_dir, DatasetOptions())[0]
        expected = read_space(unit.runs[0]).n_voxels
        assert unit.runs[0].mask is not None
        image = nib.load(unit.runs[0].mask)
        nib.Nifti1Image(image.get_fdata()[..., np.newaxis], image.affine).to_filename(unit.runs[0].mask)
        assert read_space(unit.runs[0]).n_voxels == expected

    def test_a_constant_run_without_mask(self, tmp_path: Path, write_image: Any, write_raw: Any) -> None:
        write_raw(tmp_path, "sub-01_task-x")
        func = tmp_path / "derivatives" / "fmriprep" / "sub-01" / "func"
        write_image["nifti"](func / "sub-01_task-x_desc-preproc_bold.nii.gz", np.full((2, 2, 2, 5), 7.0))
        with pytest.raises(BadDataError, match=r"preproc_bold\.nii\.gz: no voxel in the mask"):
            read_unit_space(find_units(tmp_path, DatasetOptions())[0])

    def test_scalars_that_are_called_a_series(self, tmp_path: Path) -> None:
        path = tmp_path / "x_bold.dtseries.nii"
        axes = nib.cifti2.ScalarAxis(["a", "b"]), nib.cifti2.BrainModelAxis.from_surface(range(3), 3, "CortexLeft")
        nib.Cifti2Image(np.ones((2, 3), np.float32), axes).to_filename(path)
        with pytest.raises(BadDataError, match=r"x_bold\.dtseries\.nii: cannot be read.*no CIFTI time series"):
            read_header([path])

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("x_bold.func.gii", b"<html></html>"),
            ("x_bold.dtseries.nii", b"\0" * 600),
            ("x_bold.nii", b"PK\3\4" + b"\0" * 600),
            ("x_bold.nii.gz", b"\x1f\x8b\x08\x00" + b"\0" * 30),
            ("x_bold.mgh", b"\0" * 284),
            ("x_bold.mgz", b"plain text"),
        ],
    )
    def test_content_of_another_kind(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadDataError, match=rf"{name}: cannot be read; it is cut off, damaged or of another format"):
            read_header([tmp_path / name])


class TestAtlases:
    """Files of labels that cannot be; see test_atlases for regions and spaces."""

    @staticmethod
    def write(folder: Path, table: str | None, data: Any = 1) -> Path:
        path = folder / "tpl-MNI_dseg.nii.gz"
        values = np.full((2, 2, 2), data) if np.isscalar(data) else data
        nib.Nifti1Image(values.astype(np.float32), np.eye(4)).to_filename(path)
        if table is not None:
            (folder / "tpl-MNI_dseg.tsv").write_text(table)
        return path

    @pytest.mark.parametrize(
        ("table", "data", "error", "parts"),
        [
            (None, 1, MissingInputError, ["tpl-MNI_dseg.tsv (columns index and name) is not there"]),
            ("key\tname\n1\tV1\n", 1, BadDataError, ["columns index and name are needed", "there are: key, name"]),
            ("index\tname\none\tV1\n", 1, BadDataError, ["an index is not a whole number"]),
            ("index\tname\n1\tV1\n", 0.5, BadDataError, ["one volume of whole numbers (_dseg), not 3 dimensions"]),
            ("index\tname\n1\tV1\n", np.ones((2, 2, 2, 2)), BadDataError, ["not 4 dimensions"]),
            ("index\tname\n0\tBackground\n", 0, BadDataError, ["no labels but the background"]),
        ],
    )
    def test_volumes(
        self, tmp_path: Path, table: str | None, data: Any, error: type[DnnbrainError], parts: list[str]
    ) -> None:
        path = self.write(tmp_path, table, data)
        with pytest.raises(error) as caught:
            read_labels((path,))
        assert all(part in str(caught.value) for part in [*parts, str(tmp_path)]), str(caught.value)

    def test_keys_without_a_name(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        data = np.arange(8).reshape(2, 2, 2)
        labels = read_labels((self.write(tmp_path, "index\tname\n1\tV1\n3\tV2\n", data),))
        assert labels.volume is not None
        assert labels.volume.ravel().tolist() == [-1, 0, -1, 1, -1, -1, -1, -1]
        assert "keys 2, 4, 5, 6, 7 have no name" in caplog.text

    def test_no_label_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.dlabel.nii"
        axes = nib.cifti2.ScalarAxis(["a"]), nib.cifti2.BrainModelAxis.from_surface(range(3), 3, "CortexLeft")
        nib.Cifti2Image(np.ones((1, 3), np.float32), axes).to_filename(path)
        with pytest.raises(BadDataError, match=rf"atlas {path}: not a label file \(\.dlabel\.nii\)"):
            read_labels((path,))

    def test_a_hemisphere_that_its_name_does_not_tell(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"aparc\.label\.gii: its name does not tell the hemisphere \(hemi-L"):
            pair_hemispheres([tmp_path / "aparc.label.gii"])


def test_a_dataset_within_folders_named_like_entities(tmp_path: Path, bids_dir: Path) -> None:
    """Scratch folders such as /scratch/sub-99_res-high mislead readers of whole paths, pybids among them."""
    moved = tmp_path / "sub-99_ses-7_space-T1w_desc-preproc_bold.nii.gz"
    shutil.copytree(bids_dir, moved)
    assert labels_of(moved) == labels_of(bids_dir)
    assert labels_of(moved, participants=("01",), bids_database_dir=tmp_path / "db") == labels_of(bids_dir)[:1]
