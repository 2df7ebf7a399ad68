"""All kernels of whole steps of 8B models compile for sm_90, as the runner starts them, and stay within its means."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return compiling.rows_of("tests.aot.step_variants")


def test_nothing_spills_nor_asks_for_more_than_there_is(rows: list[dict[str, Any]]) -> None:
    compiling.check_means(rows)


def test_every_kernel_of_a_step_is_among_them(rows: list[dict[str, Any]]) -> None:
    names = {row["name"] for row in rows}
    assert names >= {
        "_expand_rows",
        "_embed",
        "_add_norm",
        "_layer_norm",
        "_quantize",
        "_gemm",
        "_route",
        "_experts",
        "_experts_vector",
        "_qk_norm_rope_kv_write",
        "_decode",
        "merge_splits",
        "_prefill",
        "_peaks",
        "_thresholds",
        "_draws",
        "_choose",
        "_record_tokens",
        "_pieces",
        "_report",
    }


def test_attention_over_prompts_multiplies_in_warp_groups(rows: list[dict[str, Any]]) -> None:
    """But for heads so wide that there is no room for tiles of 64 rows."""
    assert all(row["wgmma"] for row in rows if row["name"] == "_prefill" and row["constants"]["E"] <= 256)


def test_embed_lets_nobody_read_what_the_first_kernel_has_not_written(rows: list[dict[str, Any]]) -> None:
    """Kernels behind it read where rows and tokens stand before they wait."""
    assert not any(row["starts_next_first"] for row in rows if row["name"] == "_embed")
    assert all(row["starts_next_first"] for row in rows if row["name"] in ("_decode", "_qk_norm_rope_kv_write"))
