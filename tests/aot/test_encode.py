"""The kernels of encoders compile for sm_90 and stay within its means."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling

pytestmark = pytest.mark.slow


def test_nothing_spills_nor_asks_for_more_than_there_is() -> None:
    rows = compiling.rows_of("tests.aot.encode_variants")
    assert {row["name"] for row in rows} >= {"_packed_attention", "_pool"}
    compiling.check_means(rows)
    assert all(row["starts_next_first"] for row in rows)
