"""Attention compiles for sm_90 at every width of a head and stays within its means."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling

pytestmark = pytest.mark.slow


def test_nothing_spills_nor_asks_for_more_than_there_is() -> None:
    rows = compiling.rows_of("tests.aot.attention_variants")
    assert {row["name"] for row in rows} == {"_decode", "merge_splits", "_prefill"}
    compiling.check_means(rows)
