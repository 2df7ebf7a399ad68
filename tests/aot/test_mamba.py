"""The kernels of Mamba-2 mixers compile for sm_90 and stay within its means."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling

pytestmark = pytest.mark.slow


def test_nothing_spills_nor_asks_for_more_than_there_is() -> None:
    rows = compiling.rows_of("tests.aot.mamba_variants")
    names = {"_causal_conv", "_leave_conv_state", "_scan_token", "_scan_chunks", "_silu_gate"}
    assert {row["name"] for row in rows} == names
    compiling.check_means(rows)
    assert all(row["starts_next_first"] for row in rows)
