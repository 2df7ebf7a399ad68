"""Row-wise ops of models that ``test_step`` has not compile for sm_90 and stay within their means."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling


def test_nothing_spills_nor_asks_for_more_than_there_is() -> None:
    rows = compiling.rows_of("tests.aot.row_variants")
    names = {"_add_norm", "_norm_add_norm", "_layer_norm", "_embed", "_qk_norm_rope_kv_write", "_scale_logits"}
    names |= {"_gelu_mul", "_head_norm_add"}
    assert {row["name"] for row in rows} == names
    compiling.check_means(rows)
