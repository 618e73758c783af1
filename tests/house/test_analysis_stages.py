"""What a stage does around the science."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from dnnbrain_app.analyses.rdms import compute_rdm
from dnnbrain_app.errors import BadDataError
from dnnbrain_app.rsa_stage import gather_rdms


def test_a_region_that_cannot_be_compared_is_left_out(rng: Any, caplog: Any) -> None:
    patterns = {"V1": rng.standard_normal((4, 10)), "outside": np.full((4, 3), np.nan)}
    found = gather_rdms(partial(compute_rdm, Y, tuple("abcd"), name) for name, Y in patterns.items())
    assert [rdm.name for rdm in found] == ["V1"]
    assert "region outside" in caplog.text
    with pytest.raises(BadDataError, match="region outside"):
        gather_rdms([partial(compute_rdm, patterns["outside"], tuple("abcd"), "outside")])
