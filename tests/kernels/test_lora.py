"""``lora``, and ``linear`` with adapters, in every form against float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from app.kernels.activation import Activation
from app.kernels.int8 import quantize, quantize_groups, quantize_tokens
from app.kernels.linear import linear, scratch_width
from app.kernels.linear.pack import new_packed_weight, pack_bias, pack_rows
from app.kernels.lora import (
    LowRank,
    LowRankWeight,
    PackedLowRankWeight,
    lora,
    new_packed_low_rank,
    pack_low_rank,
)
from app.kernels.lora.pack import unpack_low_rank
from app.kernels.types import Act, ActFormat, LinearWeight, PackedWeight
from tests.kernels.delta import IMPLEMENTATIONS, native_isas, running
from tests.kernels.util import (
    INT8_TOLERANCE,
    TOLERANCE,
    activated64,
    dequantize,
    plain_weight,
    poisoned,
    randn,
    relative_error,
)

SLOTS = 3
SHAPES = [((7,), 5, 3), ((40, 16, 16), 70, 16), ((65, 63), 300, 9)]
"""Outputs of the parts, inputs and greatest rank of each."""
TOKENS = [[-1], [1], [0, 0, 0, 0, 0, 2], [-1, 2, -1, 0, 0, 1, 1, 1, -1], [-1, -1]]
"""Slots of the tokens of each step."""


PLAIN = ["reference", "triton"]
"""Implementations that take adapters as plain matrices."""
native_only = pytest.mark.parametrize("implementation", native_isas(), indirect=True)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


def adapters(parts: Sequence[int], k: int, rank: int, dtype: torch.dtype) -> LowRankWeight:
    """Slots of several ranks, one of which leaves a part alone; what must not be read is poisoned."""
    down, up = poisoned(SLOTS, len(parts), rank, k, dtype=dtype), poisoned(SLOTS, rank, sum(parts), dtype=dtype)
    ends = list(accumulate(parts))
    ranks = torch.zeros(SLOTS, len(parts), dtype=torch.int32)
    for slot in range(SLOTS):
        for part, end in enumerate(ends):
            own = (rank, max(1, rank // 2), 0)[(slot + part) % 3]
            ranks[slot, part] = own
            down[slot, part, :own] = randn(own, k, seed=slot, dtype=dtype) / k**0.5
            columns = slice(end - parts[part], end)
            up[slot, :own, columns] = randn(own, parts[part], seed=7 + slot + part, dtype=dtype)
    return LowRankWeight(down, up, ranks, torch.tensor(ends, dtype=torch.int32))


def packed_adapters(plain: LowRankWeight, beside: PackedWeight) -> PackedLowRankWeight:
    """The same beside a packed weight."""
    ends = plain.ends.tolist()
    parts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    packed = new_packed_low_rank(SLOTS, parts, plain.rank, beside)
    for slot in range(SLOTS):
        for part, end in enumerate(ends):
            rank = plain.ranks[slot, part]
            if rank:
                up_nr = plain.up[slot, :rank, end - parts[part] : end].t()
                pack_low_rank(packed, slot, part, plain.down[slot, part, :rank], up_nr)
    return packed


def low_rank(weight: LowRankWeight | PackedLowRankWeight, slots: Sequence[int]) -> LowRank:
    of_tokens = torch.tensor(slots, dtype=torch.int32)
    order = of_tokens.argsort(stable=True).int()
    return LowRank(weight, of_tokens, order, poisoned(len(slots) * weight.scratch_width + 3))


def delta64(x: Tensor, low: LowRank) -> Tensor:
    """What adapters add, in fp64."""
    packed = low.weight if isinstance(low.weight, PackedLowRankWeight) else None
    weight = low.plain if packed is None else unpack_low_rank(packed)
    delta = torch.zeros(len(x), weight.up.shape[2], dtype=torch.float64)
    for token, slot in enumerate(low.slots.tolist()):
        begin = 0
        for part, end in enumerate(weight.ends.tolist() if slot >= 0 else []):
            rank = weight.ranks[slot, part]
            narrow = weight.down[slot, part, :rank].double() @ x[token].double()
            if packed is not None and rank:
                narrow = narrow_as_kept(narrow, packed.dtype)
            delta[token, begin:end] = weight.up[slot, :rank, begin:end].double().t() @ narrow
            begin = end
    return delta


def narrow_as_kept(narrow: Tensor, dtype: torch.dtype) -> Tensor:
    """A token's sums of one part as they are between the two products."""
    if dtype is torch.bfloat16:
        return narrow.bfloat16().double()
    scale = narrow.abs().max() / 127
    return (narrow / scale).round() * scale


def activation_of(x: Tensor, implementation: str, fmt: str) -> Act:
    if fmt == "float":
        return Act(x)
    return Act(*(quantize_tokens(x) if implementation == "triton" else quantize_groups(x)))


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "fmt"),
    [
        (torch.float32, torch.float32, "float"),
        (torch.bfloat16, torch.bfloat16, "float"),
        (torch.float32, torch.bfloat16, "int8"),
    ],
)
@pytest.mark.parametrize("slots", TOKENS)
@pytest.mark.parametrize(("parts", "k", "rank"), SHAPES)
@pytest.mark.parametrize("implementation", PLAIN, indirect=True)
def test_against_fp64(
    implementation: str,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    fmt: str,
    slots: Sequence[int],
    parts: Sequence[int],
    k: int,
    rank: int,
) -> None:
    weight = adapters(parts, k, rank, weight_dtype)
    x = activation_of(randn(len(slots), k, seed=1, dtype=dtype), implementation, fmt)
    low, out = low_rank(weight, slots), randn(len(slots), sum(parts), seed=2, dtype=dtype)
    before = out.clone()
    lora(x, low, out)
    expected = before.double() + delta64(dequantize(x), low)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    alone = [token for token, slot in enumerate(slots) if slot < 0]
    assert torch.equal(out[alone], before[alone])


@pytest.mark.parametrize("implementation", PLAIN, indirect=True)
def test_a_token_does_not_see_the_others(implementation: str) -> None:
    weight = adapters((40, 16), 100, 8, torch.float32)
    slots = [1, 1, 1, -1, 1, 1, 0]
    x, whole = randn(len(slots), 100, seed=1), torch.zeros(len(slots), 56)
    lora(Act(x), low_rank(weight, slots), whole)
    for token, slot in enumerate(slots):
        alone = torch.zeros(1, 56)
        lora(Act(x[token : token + 1]), low_rank(weight, [slot]), alone)
        if implementation == "reference":  # torch's product of several rows may sum in another order
            torch.testing.assert_close(whole[token : token + 1], alone)
        else:
            assert torch.equal(whole[token : token + 1], alone)


PACKED_SHAPES = [((7,), 8, 3, False), ((40, 16, 23), 72, 16, False), ((70, 70), 320, 9, True), ((96,), 132, 40, False)]
"""Outputs of the parts, inputs, greatest rank, and whether the parts are a gate and an up projection."""


def only_added(parts: Sequence[int], k: int, fmt: str, *, gated: bool) -> PackedWeight:
    """A packed weight of zeros with a bias of ones: what comes out is that and what adapters add."""
    dtype = torch.bfloat16 if fmt == "float" else torch.int8
    weight = new_packed_weight(sum(parts), k, dtype, bias=True, gate_up=gated)
    pack_rows(weight, 0, torch.zeros(sum(parts), k))
    pack_bias(weight, 0, torch.ones(sum(parts)))
    return weight


@native_only
@pytest.mark.parametrize("fmt", ["float", "int8"])
@pytest.mark.parametrize("slots", TOKENS)
@pytest.mark.parametrize(("parts", "k", "rank", "gated"), PACKED_SHAPES)
def test_packed_against_fp64(
    implementation: str, fmt: str, slots: Sequence[int], parts: Sequence[int], k: int, rank: int, gated: bool
) -> None:
    beside, plain = only_added(parts, k, fmt, gated=gated), adapters(parts, k, rank, torch.float32)
    packed = packed_adapters(plain, beside)
    x = activation_of(randn(len(slots), k, seed=1, dtype=torch.bfloat16), implementation, fmt)
    low = low_rank(packed, slots)
    activation = Activation.SILU_MUL if gated else Activation.NONE
    out = poisoned(len(slots), sum(parts) // (2 if gated else 1))
    linear(x, beside, Act(out), activation=activation, low_rank=low)
    assert relative_error(out, activated64(1 + delta64(dequantize(x), low), activation)) < 1e-4
    rounded = activated64(1 + delta64(dequantize(x), low_rank(plain, slots)), activation)
    assert relative_error(out, rounded) < INT8_TOLERANCE


@native_only
@pytest.mark.parametrize("fmt", ["float", "int8"])
def test_a_token_of_a_packed_layer_does_not_see_the_others(implementation: str, fmt: str) -> None:
    parts, k, slots = (40, 24), 100, [1, 0, 1, -1, 1, 1, 0, 1, 1]
    weight, _ = packed_or_plain(implementation, randn(64, k, seed=3), randn(64, seed=4), fmt, gated=False)
    assert isinstance(weight, PackedWeight)
    packed = packed_adapters(adapters(parts, k, 8, torch.float32), weight)
    x, whole = randn(len(slots), k, seed=1, dtype=torch.bfloat16), torch.zeros(len(slots), 64)
    linear(activation_of(x, implementation, fmt), weight, Act(whole), low_rank=low_rank(packed, slots))
    base = torch.zeros(len(slots), 64)
    linear(activation_of(x, implementation, fmt), weight, Act(base))
    for token, slot in enumerate(slots):
        alone, row = torch.zeros(1, 64), activation_of(x[token : token + 1], implementation, fmt)
        linear(row, weight, Act(alone), low_rank=low_rank(packed, [slot]))
        assert torch.equal(whole[token : token + 1], alone)
        assert torch.equal(whole[token], base[token]) == (slot < 0)


@native_only
def test_a_slot_packed_anew_has_nothing_of_the_adapter_before(implementation: str) -> None:
    parts, k = (20, 20), 64
    weight = only_added(parts, k, "int8", gated=False)
    large, small = adapters(parts, k, 24, torch.float32), adapters(parts, k, 24, torch.float32)
    packed, fresh = packed_adapters(large, weight), new_packed_low_rank(SLOTS, parts, 24, weight)
    x, outs = activation_of(randn(1, k, seed=1), implementation, "int8"), [torch.zeros(1, 40) for _ in range(2)]
    for target, out in zip((packed, fresh), outs, strict=True):
        target.ranks[1] = 0
        pack_low_rank(target, 1, 1, small.down[0, 0, :5], small.up[0, :5, :20].t())
        linear(x, weight, Act(out), low_rank=low_rank(target, [1]))
    assert torch.equal(*outs)
    assert torch.equal(outs[0][0, :20], torch.ones(20))


def packed_or_plain(
    implementation: str, plain: Tensor, bias: Tensor, fmt: str, *, gated: bool
) -> tuple[LinearWeight | PackedWeight, Tensor]:
    """A weight as the implementation reads it, and in fp64."""
    if implementation in ("reference", "triton"):
        if fmt == "float":
            return LinearWeight(plain, bias=bias), plain.double()
        values, scale = quantize(plain)
        weight = LinearWeight(values, scale, bias, ActFormat.INT8_TOKEN)
        return weight, plain_weight(weight)
    dtype = torch.bfloat16 if fmt == "float" else torch.int8
    out_features, in_features = plain.shape
    packed = new_packed_weight(out_features, in_features, dtype, bias=True, gate_up=gated)
    pack_rows(packed, 0, plain)
    pack_bias(packed, 0, bias)
    return packed, plain.to(dtype).double() if fmt == "float" else plain_weight(LinearWeight(*quantize(plain)))


@pytest.mark.parametrize("fmt", ["float", "int8"])
@pytest.mark.parametrize("int8_out", [False, True])
@pytest.mark.parametrize(
    "activation", [Activation.NONE, Activation.SILU_MUL, Activation.GELU, Activation.GELU_TANH_MUL]
)
@pytest.mark.parametrize("slots", [[2], [-1, 2, 0, 0, -1]])
def test_linear_adds_ahead_of_what_follows(
    implementation: str, fmt: str, int8_out: bool, activation: Activation, slots: Sequence[int]
) -> None:
    gated = activation.gated
    parts, k, rank = ((70, 70) if gated else (97,)), 64, 6
    n, tokens = sum(parts), len(slots)
    dtype = torch.float32 if fmt == "int8" or implementation in ("reference", "triton") else torch.bfloat16
    weight, weight64 = packed_or_plain(implementation, randn(n, k, seed=3) / 8, randn(n, seed=4), fmt, gated=gated)
    x = activation_of(randn(tokens, k, seed=1, dtype=dtype), implementation, fmt)
    plain = adapters(parts, k, rank, torch.float32)
    low = low_rank(packed_adapters(plain, weight) if isinstance(weight, PackedWeight) else plain, slots)
    width = n // 2 if gated else n
    token_scale = implementation == "triton"
    scales = 1 if token_scale else -(-width // 64)
    out = (
        Act(poisoned(tokens, width, dtype=torch.int8), poisoned(tokens, scales))
        if int8_out
        else Act(poisoned(tokens, width))
    )
    scratch = scratch_width(weight, ActFormat.INT8 if int8_out else ActFormat.FLOAT, activation, adapted=True)
    linear(x, weight, out, activation=activation, low_rank=low, scratch=poisoned(tokens, scratch) if scratch else None)
    y = dequantize(x) @ weight64.t() + randn(n, seed=4).double() + delta64(dequantize(x), low)
    expected = activated64(y, activation)
    tolerance = INT8_TOLERANCE if int8_out else 1e-4 if isinstance(weight, PackedWeight) else 1e-5
    assert relative_error(dequantize(out), expected) < tolerance


def test_linear_adds_a_residual_too(implementation: str) -> None:
    slots, parts, k = [0, -1, 1], (33,), 64
    weight, weight64 = packed_or_plain(implementation, randn(33, k, seed=3), randn(33, seed=4), "int8", gated=False)
    x = activation_of(randn(3, k, seed=1), implementation, "int8")
    plain, out = adapters(parts, k, 4, torch.float32), randn(3, 33, seed=5)
    low = low_rank(packed_adapters(plain, weight) if isinstance(weight, PackedWeight) else plain, slots)
    expected = out.double() + dequantize(x) @ weight64.t() + randn(33, seed=4).double() + delta64(dequantize(x), low)
    linear(x, weight, Act(out), residual=out, low_rank=low)
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("implementation", PLAIN, indirect=True)
def test_arguments_are_checked(implementation: str) -> None:
    weight, x, out = adapters((8,), 16, 4, torch.float32), Act(randn(2, 16)), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="slots has shape"):
        lora(x, low_rank(weight, [0]), out)
    with pytest.raises(ValueError, match="up has shape"):
        lora(x, low_rank(weight, [0, 1]), torch.zeros(2, 9))
    with pytest.raises(ValueError, match="down has shape"):
        lora(Act(randn(2, 17)), low_rank(weight, [0, 1]), out)
    with pytest.raises(ValueError, match="a scratch of"):
        lora(x, replace(low_rank(weight, [0, 1]), scratch=torch.empty(3)), out)


@native_only
def test_arguments_beside_a_packed_weight_are_checked(implementation: str) -> None:
    parts, x, out = (8,), activation_of(randn(2, 16), implementation, "int8"), Act(torch.zeros(2, 8))
    weight, other = only_added(parts, 16, "int8", gated=False), only_added(parts, 20, "int8", gated=False)
    plain = adapters(parts, 16, 4, torch.float32)
    packed = packed_adapters(plain, weight)
    with pytest.raises(ValueError, match="its adapters are not"):
        linear(x, weight, out, low_rank=low_rank(plain, [0, 1]))
    with pytest.raises(ValueError, match="adapters are of a weight"):
        linear(x, weight, out, low_rank=low_rank(packed_adapters(adapters(parts, 20, 4, torch.float32), other), [0, 1]))
    with pytest.raises(ValueError, match="order has shape"):
        linear(x, weight, out, low_rank=replace(low_rank(packed, [0, 1]), order=torch.zeros(1, dtype=torch.int32)))
    with pytest.raises(ValueError, match="a scratch of"):
        linear(x, weight, out, low_rank=replace(low_rank(packed, [0, 1]), scratch=torch.empty(3)))
