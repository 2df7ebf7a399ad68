"""Binding of the native ``lora``."""

from __future__ import annotations

from torch import Tensor

from app.kernels.dispatch import Call, Dim, emit
from app.kernels.lora.adapted import LowRank
from app.kernels.native.program import dtype_code
from app.kernels.types import Act

_MAX_WIDTH = 1 << 16
"""TUILI_MAX_LORA_WIDTH"""


def lora_cpu(x: Act, low_rank: LowRank, out_TN: Tensor) -> None:
    emit([lora_call(x, low_rank, out_TN, add=True)], tokens=x.values.shape[0])


def lora_call(x: Act, low_rank: LowRank, out_TN: Tensor, *, add: bool) -> Call:
    """The native ``lora`` into ``out``, which is added to, or overwritten where tokens have a slot.

    Raises:
        ValueError: the input is wider than the kernel's scratch.
    """
    weight = low_rank.weight
    if x.values.shape[1] > _MAX_WIDTH:
        raise ValueError(f"lora: inputs of {x.values.shape[1]} elements, up to {_MAX_WIDTH} are taken")
    return Call(
        "lora",
        Dim.TOKENS,
        x=x.values,
        x_scale=x.scale,
        down=weight.down,
        up=weight.up,
        ranks=weight.ranks,
        ends=weight.ends,
        slots=low_rank.slots,
        out=out_TN,
        x_dtype=dtype_code(x.values),
        weight_dtype=dtype_code(weight.down),
        out_dtype=dtype_code(out_TN),
        k=x.values.shape[1],
        n=out_TN.shape[1],
        parts=weight.parts,
        rank=weight.rank,
        add=int(add),
    )
