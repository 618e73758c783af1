"""fMRIPrep's confounds tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dnnbrain_app.dataset.events import read_table
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Run


def read_confounds(run: Run) -> dict[str, Array]:
    """Read the confounds of a run.

    Parameters
    ----------
    run : Run
        ``confounds`` and ``n_volumes`` are used.

    Returns
    -------
    dict of str to array of shape (n_volumes,)
        float64 by column, NaN for n/a; empty where the run has no table.

    Raises
    ------
    BadDataError
        If the table does not have one row a volume, or holds text.
    """
    if run.confounds is None:
        return {}
    table = read_table(run.confounds)
    if len(table) != run.n_volumes:
        raise BadDataError(f"{run.confounds}: {len(table)} rows for the {run.n_volumes} volumes of {run.bold[0].name}")
    columns = {}
    for name in table.columns:
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        wrong = np.flatnonzero(table[name].notna() & np.isnan(numbers))
        if len(wrong):
            raise BadDataError(
                f"{run.confounds}: row {wrong[0] + 1}: {name} {table[name].iloc[wrong[0]]!r} is not a number"
            )
        columns[name] = numbers
    return columns
