"""``packed_attention`` in every form against float64: sequences of odd lengths that must not see each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.dispatch import FallbackError
from app.kernels.native.program import Program
from app.kernels.packed_attention import packed_attention
from app.kernels.types import Act, PackedSequences
from tests.kernels.delta import IMPLEMENTATIONS, cases, native_isas, running
from tests.kernels.util import (
    INT8_TOLERANCE,
    TOLERANCE,
    dequantize,
    poisoned,
    poisoned_act,
    randn,
    relative_error,
    steps,
)

HEADS = [(1, 1, 16), (4, 2, 64), (3, 3, 48), (6, 1, 128), (2, 2, 256)]
"""Query heads, KV heads, and their width."""
WINDOWS = [None, 0, 5, 70, 1000]
DTYPES = [torch.float32, torch.bfloat16]
SCALE = 0.1
LENGTHS = [1, 7, 64, 15, 130, 2, 65, 100]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def packed(lengths: Sequence[int]) -> PackedSequences:
    return PackedSequences(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32))


def attention64(
    qkv: Tensor, lengths: Sequence[int], heads: int, kv_heads: int, scale: float, window: int | None = None
) -> Tensor:
    """[T, H * E] in fp64."""
    outs, start = [], 0
    for length in lengths:
        rows = qkv[start : start + length].double().unflatten(1, (heads + 2 * kv_heads, -1))
        q, k, v = rows.split([heads, kv_heads, kv_heads], dim=1)
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) * scale
        if window is not None:
            at = torch.arange(length)
            scores[:, (at[:, None] - at[None, :]).abs() > window] = -math.inf
        outs.append(torch.einsum("hqk,khe->qhe", scores.softmax(-1), v).flatten(1))
        start += length
    return torch.cat(outs)


def run(
    qkv: Tensor, lengths: Sequence[int], heads: int, kv_heads: int, window: int | None = None, out: Act | None = None
) -> Act:
    width = qkv.shape[1] // (heads + 2 * kv_heads) * heads
    out = out or poisoned_act(len(qkv), width, qkv.dtype)
    scratch = poisoned(len(qkv), width, dtype=qkv.dtype)
    packed_attention(
        qkv, packed(lengths), out, heads=heads, kv_heads=kv_heads, scale=SCALE, window=window, scratch=scratch
    )
    return out


def make_qkv(lengths: Sequence[int], heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> Tensor:
    return randn(sum(lengths), (heads + 2 * kv_heads) * width, seed=1, dtype=dtype)


# Triton's are all heads and all windows with both dtypes.
@cases(
    "dtype, window, shape",
    itertools.product(DTYPES, WINDOWS, HEADS),
    [(dtype, WINDOWS[(i + 2 * j) % 5], shape) for i, shape in enumerate(HEADS) for j, dtype in enumerate(DTYPES)],
)
def test_against_fp64(implementation: str, dtype: torch.dtype, window: int | None, shape: tuple[int, int, int]) -> None:
    heads, kv_heads, width = shape
    lengths = LENGTHS if implementation != "triton" else LENGTHS[:4]
    qkv = make_qkv(lengths, heads, kv_heads, width, dtype)
    out = run(qkv, lengths, heads, kv_heads, window)
    expected = attention64(qkv, lengths, heads, kv_heads, SCALE, window)
    assert relative_error(out.values, expected) < TOLERANCE[dtype]


def test_int8_is_the_rounded_result(implementation: str) -> None:
    lengths = [3, 20, 1]
    qkv = make_qkv(lengths, 4, 2, 32, torch.float32)
    expected = attention64(qkv, lengths, 4, 2, SCALE)
    token_scales = Act(poisoned(24, 128, dtype=torch.int8), poisoned(24, 1))
    group_scales = poisoned_act(24, 128, torch.int8)
    out = run(qkv, lengths, 4, 2, out=token_scales if implementation == "triton" else group_scales)
    assert ((dequantize(out) - expected).abs() <= 0.5001 * steps(out) + 1e-6).all()
    if implementation == "triton":
        with pytest.raises(ValueError, match="by tokens"):
            run(qkv, lengths, 4, 2, out=group_scales)
    else:
        assert relative_error(dequantize(run(qkv, lengths, 4, 2, out=token_scales)), expected) < INT8_TOLERANCE


@cases(
    "dtype, window, lengths, heads",
    itertools.product(DTYPES, [None, 9], [[5, 70, 1, 129]], [(4, 2)]),
    [(torch.float32, None, [5, 70, 1], (2, 1)), (torch.bfloat16, 9, [5, 70, 1], (2, 1))],
)
def test_a_sequence_gives_the_same_bits_alone(
    implementation: str, dtype: torch.dtype, window: int | None, lengths: list[int], heads: tuple[int, int]
) -> None:
    qkv = make_qkv(lengths, *heads, 32, dtype)
    together = run(qkv, lengths, *heads, window).values
    start = 0
    for length in lengths:
        alone = run(qkv[start : start + length].clone(), [length], *heads, window).values
        if implementation == "reference":  # whose products' bits hang on where in memory an element stands
            assert relative_error(alone, together[start : start + length]) < TOLERANCE[dtype]
        else:
            assert torch.equal(alone, together[start : start + length])
        start += length


def test_a_nan_stays_in_its_sequence(implementation: str) -> None:
    lengths = [20, 20, 20]
    qkv = make_qkv(lengths, 2, 1, 16, torch.float32)
    qkv[25] = float("nan")
    out = run(qkv, lengths, 2, 1).values
    assert out[20:40].isnan().all()
    assert out[:20].isfinite().all()
    assert out[40:].isfinite().all()


def test_large_scores(implementation: str) -> None:
    qkv = make_qkv([70], 1, 1, 16, torch.float32) * 40
    qkv[:, 32:] /= 40
    assert relative_error(run(qkv, [70], 1, 1).values, attention64(qkv, [70], 1, 1, SCALE)) < 1e-4


@pytest.mark.parametrize("isa", native_isas())
def test_any_number_of_threads_gives_the_same_bits(isa: str) -> None:
    qkv = make_qkv(LENGTHS, 4, 2, 64, torch.float32)
    outs = []
    for threads in (1, 5):
        with running(isa, threads):
            outs.append(run(qkv, LENGTHS, 4, 2).values)
    assert torch.equal(*outs)


@pytest.mark.parametrize("isa", native_isas())
def test_a_recording_serves_batches_of_any_size(isa: str) -> None:
    qkv, out, bounds = make_qkv([40, 60], 2, 2, 32, torch.float32), poisoned_act(100, 64), packed([40, 60])
    with running(isa):
        eager = run(qkv, [40, 60], 2, 2).values
        with dispatch.recording() as calls:
            packed_attention(qkv, bounds, out, heads=2, kv_heads=2, scale=SCALE)
        program = Program(dispatch.pool(), calls, dispatch.isa())
        program.run(tokens=40, rows=1)
        assert torch.equal(out.values[:40], eager[:40])
        assert out.values[40:].isnan().all()
        program.run(tokens=100, rows=2)
        assert torch.equal(out.values, eager)


def test_nothing_to_do(implementation: str) -> None:
    run(torch.empty(0, 64), [], 2, 1)


@pytest.mark.parametrize("isa", native_isas())
def test_widths_that_are_not_native_are_no_silent_fallback(isa: str) -> None:
    qkv = make_qkv([9], 2, 1, 20, torch.float32)
    with running(isa), pytest.raises(FallbackError, match="heads of 20"):
        run(qkv, [9], 2, 1)
    with running("reference"):
        assert relative_error(run(qkv, [9], 2, 1).values, attention64(qkv, [9], 2, 1, SCALE)) < 1e-6


def test_refuses_arguments_that_do_not_fit() -> None:
    qkv, out = randn(9, 64), poisoned_act(9, 32)
    with pytest.raises(ValueError, match="do not divide"):
        packed_attention(qkv, packed([9]), out, heads=3, kv_heads=2, scale=1.0)
    with pytest.raises(ValueError, match="64 columns"):
        packed_attention(qkv, packed([9]), out, heads=3, kv_heads=1, scale=1.0)
    with pytest.raises(ValueError, match="scale is 0"):
        packed_attention(qkv, packed([9]), out, heads=2, kv_heads=1, scale=0.0)
    with pytest.raises(ValueError, match="window is -1"):
        packed_attention(qkv, packed([9]), out, heads=2, kv_heads=1, scale=1.0, window=-1)
    with pytest.raises(ValueError, match="cu_seqlens"):
        packed_attention(qkv, PackedSequences(torch.tensor([0, 9])), out, heads=2, kv_heads=1, scale=1.0)
