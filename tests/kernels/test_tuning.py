"""Launch shapes: which row of the tables counts, and that the default ones are complete."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from app.kernels.gpu.tuning import Row, compiling_for, launch_shape, read_table, table_name


def test_bounds_hold_from_both_sides_and_other_dimensions_are_equal() -> None:
    row = Row({}, {"max_m": 64, "min_capability": 90, "k": 4096})
    fitting = {"m": 64, "capability": 90, "k": 4096}
    assert row.fits(fitting)
    for other in ({"m": 65}, {"capability": 89}, {"k": 4095}, {"k": 4097}):
        assert not row.fits({**fitting, **other})


def test_every_op_has_a_row_for_whatever_comes() -> None:
    for op, rows in read_table("default").items():
        assert rows[-1].where == {}, op
        assert all(row.where for row in rows[:-1]), op
        assert all({"num_warps", "num_stages"} <= row.shape.keys() for row in rows), op


def test_a_devices_name_is_a_file_name() -> None:
    assert table_name("NVIDIA H200") == "nvidia-h200"
    assert read_table("no-such-device") == {}


def test_an_op_without_rows_is_an_error() -> None:
    with pytest.raises(KeyError, match="no launch shape for no_such_op"):
        launch_shape("no_such_op", m=1)


def test_shapes_are_those_of_the_gpu_compiled_for() -> None:
    problem = {"head_dim": 96, "int8": 0}
    with compiling_for(89):
        small = launch_shape("paged_attention_prefill", **problem)
    with compiling_for(90):
        assert launch_shape("paged_attention_prefill", **problem)["BLOCK_M"] > small["BLOCK_M"]


def test_a_shape_may_be_taken_apart() -> None:
    launch_shape("quantize", width=100).clear()
    assert launch_shape("quantize", width=100)


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_tiles_of_products_fit_into_shared_memory(capability: int) -> None:
    """Of sm_80, sm_89 and sm_90: 163, 99 and 227 KB."""
    limit = {80: 163, 89: 99, 90: 227}[capability] << 10
    bytes_of_x = {"gemm": 2, "gemm_w8a8": 1, "gemm_w8a16": 2, "experts": 2, "experts_w8a8": 1, "experts_w8a16": 2}
    bytes_of_weight = {**dict.fromkeys(bytes_of_x, 1), "gemm": 2, "experts": 2}
    with compiling_for(capability):
        for op in bytes_of_x:
            for m in (1, 16, 17, 33, 65, 257):
                for gated in (0, 1) if op != "gemm" else (0,):
                    shape = launch_shape(op, m=m, n=4096, k=4096, gated=gated)
                    weights = shape["BLOCK_N"] * bytes_of_weight[op] * (1 + gated)
                    stage = shape["BLOCK_K"] * (shape["BLOCK_M"] * bytes_of_x[op] + weights)
                    assert stage * shape["num_stages"] <= limit, (op, m, gated)
