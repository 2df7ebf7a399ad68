"""The kernels of a layer of experts compile for sm_90 and stay within its means."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from tests.aot import compiling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
"""All launches are compiled for the first test."""

OWN = {"_route", "_route_by_scores", "_group_slots", "_experts", "_experts_vector", "_weighted_sum"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return compiling.rows_of("tests.aot.experts_variants")


def test_nothing_spills_nor_asks_for_more_than_there_is(rows: list[dict[str, Any]]) -> None:
    assert {row["name"] for row in rows} >= OWN
    compiling.check_means(rows)


def test_biases_and_the_clamped_gate_are_among_them(rows: list[dict[str, Any]]) -> None:
    gated = [row for row in rows if row["name"] in ("_experts", "_experts_vector") and row["constants"]["GATED"]]
    limits = {(row["name"], row["constants"].get("LIMIT")) for row in gated}
    assert limits == {(name, limit) for name in ("_experts", "_experts_vector") for limit in (7.0, None)}


def test_tiles_of_64_rows_multiply_in_warp_groups(rows: list[dict[str, Any]]) -> None:
    tall = [row for row in rows if row["name"] == "_experts" and row["constants"]["BLOCK_M"] >= 64]
    assert {row["int8"] for row in tall} == {True, False}
    assert all(row["wgmma"] for row in tall)
