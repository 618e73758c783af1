from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dnnbrain_app.dataset.conditions import select_rows
from dnnbrain_app.errors import BadDataError, UsageError

FIRST = {
    "onset": [1.0, 2.0, 3.0],
    "trial_type": ["exp", "catch", None],
    "nr": ["521.0", "7", None],
    "class": ["a", "b", "c"],
    "StimOn(s)": ["6", "n", "8"],
    "code": ["1", "2", "3"],
}
SECOND = {"onset": [1.0], "trial_type": ["exp"], "nr": ["521"], "class": ["d"], "StimOn(s)": ["9"], "code": ["x"]}
TABLES = {Path("1.tsv"): pd.DataFrame(FIRST), Path("2.tsv"): pd.DataFrame(SECOND)}


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("trial_type == 'exp'", [[0], [0]]),
        ('trial_type == "exp"', [[0], [0]]),
        ("trial_type != 'exp'", [[1, 2], []]),
        ("trial_type in ['exp', 'catch'] and onset > 1", [[1], []]),
        ("trial_type == 'exp' & nr == 521 | onset == 2", [[0, 1], [0]]),
        ("not (trial_type == 'exp')", [[1, 2], []]),
        ("nr == 521", [[0], [0]]),
        ("6 < nr < 600", [[0, 1], [0]]),
        ("code == '1'", [[0], []]),  # text, as the other run has a letter
        ("trial_type.isna()", [[2], []]),
        ("trial_type.str.startswith('c')", [[1], []]),
        ("~trial_type.str.contains('X', case=False)", [[1, 2], []]),
        ("`StimOn(s)` == '9'", [[], [0]]),
        ("`class` == 'd'", [[], [0]]),
        ("  onset == 3\n", [[2], []]),
        ("(onset > 1\n and onset < 3)", [[1], []]),
        ("trial_type != 'a@b__c'", [[0, 1, 2], [0]]),
    ],
)
def test_rows_that_are_kept(condition: str, kept: list[list[int]]) -> None:
    selected = select_rows(TABLES, condition)
    assert list(selected) == list(TABLES)
    assert [table.index.tolist() for table in selected.values()] == kept
    row = next(table for table in selected.values() if len(table)).iloc[0]
    assert row["code"] in ("1", "2", "3", "x")  # as in the table, not as a number


def test_a_column_that_some_runs_lack_is_missing_there() -> None:
    tables = {**TABLES, Path("3.tsv"): pd.DataFrame({"onset": [5.0]}), Path("4.tsv"): TABLES[Path("1.tsv")].head(0)}
    assert [len(table) for table in select_rows(tables, "trial_type == 'exp'").values()] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("condition", "error", "parts"),
    [
        (
            "trial == 'exp'",
            BadDataError,
            ["1.tsv", "a column 'trial', which is not there", "of text: trial_type, class"],
        ),
        ("trial_type == exp", BadDataError, ["'exp', which is not there (text needs quotes)"]),
        ("`my column` > 0", BadDataError, ["a column 'my column', which is not there", "numbers: onset, nr;"]),
        ("trial_type > 3", BadDataError, ["does not fit the columns"]),
        ("trial_type.str.contains('(')", BadDataError, ["does not fit the columns"]),
        ("trial_type == 'nothing'", BadDataError, ["holds for none of 4 rows", "columns of numbers: onset, nr"]),
        ("code == 1", BadDataError, ["holds for none"]),
        ("trial_type", UsageError, ["'trial_type': compares nothing"]),
        ("onset", UsageError, ["compares nothing"]),
        ("True", UsageError, ["compares nothing"]),
        ("trial_type = 'exp'", UsageError, ["cannot be understood", "== compares"]),
        ("trial_type is exp", BadDataError, ["'exp', which is not there"]),
        ("StimOn(s) == 9", BadDataError, ["'StimOn'", "not there"]),
        ("trial_type == 'exp", UsageError, ["cannot be understood"]),
        ("73k_id == 4", UsageError, ["names with spaces are put in ` `"]),
        ("(" * 500 + "onset" + ")" * 500, UsageError, ["cannot be understood"]),
        ("onset == 1; onset == 2", UsageError, ["cannot be understood"]),
        ("onset == @limit", UsageError, ["cannot be understood"]),
        ("onset @ nr", UsageError, ["@ is not allowed"]),
        ("trial_type.to_csv('written.csv')", UsageError, [".to_csv is not allowed"]),
        ("trial_type.str.__class__", UsageError, [".__class__ is not allowed"]),
        ("'''a'b'''.format(onset.to_csv('written.csv'))", UsageError, ["is not allowed"]),
        ("__import__('os')", BadDataError, ["'__import__', which is not there"]),
        ("[onset for onset in nr]", BadDataError, ["does not fit"]),
    ],
)
def test_conditions_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, error: type[Exception], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    limit = 1.0  # a variable of the caller must not be seen
    with pytest.raises(error) as caught:
        select_rows(TABLES, condition)
    assert all(part in str(caught.value) for part in ["--trial-filter", *parts]), (limit, str(caught.value))
    assert not list(tmp_path.iterdir())


def test_no_rows_at_all() -> None:
    with pytest.raises(BadDataError, match="none of 0 rows"):
        select_rows({Path("1.tsv"): TABLES[Path("1.tsv")].head(0)}, "trial_type == 'exp'")
