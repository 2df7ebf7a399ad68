"""The products of an 8B model's linear layers compile for sm_90 and stay within its means."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return compiling.rows_of("tests.aot.linear_variants")


def test_nothing_spills_nor_asks_for_more_than_there_is(rows: list[dict[str, Any]]) -> None:
    compiling.check_means(rows)


def test_tiles_of_64_rows_multiply_in_warp_groups(rows: list[dict[str, Any]]) -> None:
    tall = [row for row in rows if row["constants"].get("BLOCK_M", 0) >= 64]
    assert {row["int8"] for row in tall} == {True, False}
    assert all(row["wgmma"] for row in tall)


def test_every_kernel_and_kind_of_product_is_among_them(rows: list[dict[str, Any]]) -> None:
    assert {row["name"] for row in rows} == {
        "_gemm",
        "_gemv",
        "_quantize",
        "_activate",
        "_lora_shrink",
        "_lora_expand",
    }
    products = [row["constants"] for row in rows if row["name"] == "_gemm"]
    assert {constants["GATED"] for constants in products} == {True, False}
    assert len({constants["SPLIT_K"] for constants in products}) > 1
