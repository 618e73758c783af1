"""fMRIPrep's confounds tables."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from dnnbrain_app.dataset.events import read_table
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.records import Array, Run

# of fMRIPrep before 1.2, in its order; motion was in mm and radians then as well
_MODERN = {
    "CSF": "csf",
    "WhiteMatter": "white_matter",
    "GlobalSignal": "global_signal",
    "stdDVARS": "std_dvars",
    "non-stdDVARS": "dvars",
    "FramewiseDisplacement": "framewise_displacement",
    **{axis: f"trans_{axis.lower()}" for axis in "XYZ"},
    **{f"Rot{axis}": f"rot_{axis.lower()}" for axis in "XYZ"},
}
_MODERN_NUMBERED = {
    "tCompCor": "t_comp_cor_",
    "aCompCor": "a_comp_cor_",
    "Cosine": "cosine",
    "NonSteadyStateOutlier": "non_steady_state_outlier",
    "AROMAAggrComp": "aroma_motion_",
}


def read_confounds(run: Run) -> dict[str, Array]:
    """Read the confounds of a run.

    Parameters
    ----------
    run : Run
        ``confounds`` and ``n_volumes`` are used.

    Returns
    -------
    dict of str to array of shape (n_volumes,)
        float64 by column, NaN for n/a; empty where the run has no table. Columns have the names that fMRIPrep gives
        them since 1.2, also in older tables.

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
        columns[_modernise(name)] = numbers
    return columns


def _modernise(name: str) -> str:
    """Translate the name of a column of fMRIPrep before 1.2.

    Examples
    --------
    >>> _modernise("RotX"), _modernise("aCompCor00"), _modernise("trans_x")
    ('rot_x', 'a_comp_cor_00', 'trans_x')
    """
    numbered = re.fullmatch(r"([A-Za-z]+?)(\d+)", name)
    if numbered and numbered.group(1) in _MODERN_NUMBERED:
        return _MODERN_NUMBERED[numbered.group(1)] + numbered.group(2)
    return _MODERN.get(name, name)
