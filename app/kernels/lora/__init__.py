"""Products of low rank that adapters add to a linear layer's outputs, each token with the adapter of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_act, check_tensor, check_token_scale
from app.kernels.dispatch import fall_back, runs_triton
from app.kernels.lora.adapted import MAX_PARTS, MAX_RANK, LowRankWeight
from app.kernels.lora.pack import PackedLowRankWeight, new_packed_low_rank, pack_low_rank
from app.kernels.lora.reference import lora_reference
from app.kernels.lora.room import new_low_rank, store_low_rank
from app.kernels.lora.step import LowRank
from app.kernels.types import Act, NativeWeight

__all__ = [
    "MAX_PARTS",
    "MAX_RANK",
    "LowRank",
    "LowRankWeight",
    "PackedLowRankWeight",
    "check_low_rank",
    "check_packed_low_rank",
    "lora",
    "new_low_rank",
    "new_packed_low_rank",
    "pack_low_rank",
    "store_low_rank",
]

_OP = "lora"


def lora(x: Act, low_rank: LowRank, out_TN: Tensor) -> None:
    """``out[t] += up[slot].T @ (down[slot] @ x[t])`` with the slot of token t, part by part; tokens without a slot are
    left as they are.

    Sums are fp32; int8 inputs are taken times their scales. What a layer with more behind its product adds is handed to
    :func:`app.kernels.linear.linear`, which adds it where it belongs, natively too: there is no native form of this
    alone.

    Args:
        x: [T, K]; int8 in Triton with one scale a token.
        low_rank: adapters of a layer [N, K], not packed.
        out_TN: [T, N] floating.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    check_low_rank(_OP, x, low_rank, out_TN.shape[1])
    check_tensor(_OP, "out", out_TN, (x.values.shape[0], out_TN.shape[1]), *FLOATING)
    if runs_triton(x.values):
        check_token_scale(_OP, x)
        from app.kernels.lora.triton import lora_triton  # only a GPU needs Triton

        lora_triton(x, low_rank, out_TN)
    else:
        fall_back(_OP, "its adapters are not packed")
        lora_reference(x, low_rank, out_TN)


def check_low_rank(op: str, x: Act, low_rank: LowRank, features: int) -> None:
    """Checks that adapters fit a layer's input [T, K] and its ``features`` outputs.

    Raises:
        ValueError: they do not; the message names the op and the argument.
    """
    (tokens, width), weight = x.values.shape, low_rank.plain
    check_act(op, "x", x, (tokens, width))
    if weight.down.dim() != 4 or not (1 <= weight.parts <= MAX_PARTS and 1 <= weight.rank <= MAX_RANK):
        raise ValueError(
            f"{op}: down has shape {list(weight.down.shape)}, expected [S, P, R, K] with P up to {MAX_PARTS} and R up "
            f"to {MAX_RANK}"
        )
    slots, dtype = weight.down.shape[0], weight.down.dtype
    check_tensor(op, "down", weight.down, (slots, weight.parts, weight.rank, width), *FLOATING)
    check_tensor(op, "up", weight.up, (slots, weight.rank, features), dtype)
    check_tensor(op, "ranks", weight.ranks, (slots, weight.parts), torch.int32)
    check_tensor(op, "ends", weight.ends, (weight.parts,), torch.int32)
    _check_tokens(op, tokens, low_rank)


def check_packed_low_rank(op: str, x: Act, low_rank: LowRank, beside: NativeWeight) -> None:
    """Checks that packed adapters fit a layer's input [T, K] and its packed weight.

    Raises:
        ValueError: they do not; the message names the op and the argument.
    """
    weight = low_rank.packed
    adapted = (weight.ends[-1], weight.in_features, weight.dtype, weight.gate_up)
    layer = (beside.out_features, beside.in_features, beside.input_dtype, beside.gate_up)
    if adapted != layer:
        raise ValueError(f"{op}: adapters are of a weight {adapted}, the weight is {layer}")
    _check_tokens(op, x.values.shape[0], low_rank)


def _check_tokens(op: str, tokens: int, low_rank: LowRank) -> None:
    check_tensor(op, "slots", low_rank.slots, (tokens,), torch.int32)
    check_tensor(op, "order", low_rank.order, (tokens,), torch.int32)
    scratch, width = low_rank.scratch, low_rank.weight.scratch_width
    check_tensor(op, "scratch", scratch, (scratch.numel(),), torch.float32)
    if scratch.numel() < tokens * width:
        raise ValueError(f"{op}: a scratch of {scratch.numel()} elements, {tokens * width} are needed")
