"""Calls of the native ``lora``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim
from app.kernels.lora.step import LowRank
from app.kernels.native.program import dtype_code
from app.kernels.types import Act


def lora_call(x: Act, low_rank: LowRank) -> Call:
    """The native ``lora``: the step's tokens brought to the low rank, into the scratch."""
    weight = low_rank.packed
    return Call(
        "lora",
        Dim.TOKENS,
        x=x.values,
        x_scale=x.scale,
        data=weight.data,
        ranks=weight.ranks,
        slots=low_rank.slots,
        order=low_rank.order,
        low=low_rank.scratch,
        x_dtype=dtype_code(x.values),
        k=weight.in_features,
        parts=weight.parts,
        rank=weight.rank,
        low_bytes=weight.low_bytes,
        slot_words=weight.offsets[-1],
        down_scale_at=weight.offsets[0],
    )


def added_arguments(low_rank: LowRank) -> dict[str, Tensor | int]:
    """Those arguments of the native ``linear`` by which it adds what the tokens' adapters add."""
    weight = low_rank.packed
    _, up_at, up_scale_at, slot_words = weight.offsets
    return {
        "low": low_rank.scratch,
        "adapters": weight.data,
        "ranks": weight.ranks,
        "slots": low_rank.slots,
        "order": low_rank.order,
        "first_block": weight.first_block,
        "block_part": weight.block_part,
        "parts": weight.parts,
        "rank": weight.rank,
        "low_bytes": weight.low_bytes,
        "slot_words": slot_words,
        "up_at": up_at,
        "up_scale_at": up_scale_at,
    }
