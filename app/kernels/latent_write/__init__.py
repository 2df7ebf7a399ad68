"""Norm and rotation of a token's latent and its write into pages, and the rotation of its queries."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.check import FLOATING, check_heads, check_latents, check_tensor
from app.kernels.dispatch import native, runs_triton
from app.kernels.latent_write.cpu import latent_write_cpu
from app.kernels.latent_write.reference import latent_write_reference
from app.kernels.types import LayerLatents

__all__ = ["latent_write"]

_OP = "latent_write"


def latent_write(
    latent_TW: Tensor,
    norm_C: Tensor,
    eps: float,
    q_THR: Tensor,
    positions_T: Tensor,
    rope_PR: Tensor,
    pages: LayerLatents,
    slot_mapping_T: Tensor,
    q_out_THR: Tensor,
    *,
    interleaved: bool,
) -> None:
    """Stores what attention keeps of a step's tokens, and rotates the part of their queries that is rotated.

    The first C elements of a latent are RMS-normed. Its other R, a key that all heads share, and the queries are
    rotated: pair i by the i-th frequency. All in fp32. The pages at ``slot_mapping_T`` get both parts side by side.

    Args:
        latent_TW: [T, C + R] floating.
        norm_C: [C] floating, weight of the norm.
        eps: of the norm.
        q_THR: [T, H, R] of latent's dtype; may be parts of wider heads.
        positions_T: [T] int64, each below P (not checked here).
        rope_PR: [P, R] fp32: cosines, then sines, of the R / 2 frequencies.
        pages: [num_blocks, B, C + R] floating.
        slot_mapping_T: [T] int64, block * B + offset, all different (not checked here).
        q_out_THR: [T, H, R] of q's dtype; likewise.
        interleaved: pair i are elements 2 i and 2 i + 1, otherwise i and i + R / 2. Pairs stay where they are.

    Raises:
        ValueError: an argument's shape or dtype does not fit.
    """
    tokens, heads, rotary = q_THR.shape
    width = norm_C.numel() + rotary
    check_tensor(_OP, "latent", latent_TW, (tokens, width), *FLOATING)
    check_tensor(_OP, "norm", norm_C, (norm_C.numel(),), *FLOATING)
    check_heads(_OP, "q", q_THR, (tokens, heads, rotary), latent_TW.dtype)
    check_heads(_OP, "q_out", q_out_THR, (tokens, heads, rotary), latent_TW.dtype)
    check_tensor(_OP, "positions", positions_T, (tokens,), torch.int64)
    check_tensor(_OP, "rope", rope_PR, (rope_PR.shape[0], rotary), torch.float32)
    if rotary % 2:
        raise ValueError(f"{_OP}: {rotary} elements are rotated, expected an even number")
    check_latents(_OP, pages, width)
    check_tensor(_OP, "slot_mapping", slot_mapping_T, (tokens,), torch.int64)
    arguments = (
        latent_TW, norm_C, eps, q_THR, positions_T, rope_PR, pages, slot_mapping_T, q_out_THR, interleaved
    )  # fmt: skip
    if runs_triton(latent_TW):
        from app.kernels.latent_write.triton import latent_write_triton  # only a GPU needs Triton

        latent_write_triton(*arguments)
    elif native(_OP, latent_TW, norm_C, pages.values):
        latent_write_cpu(*arguments)
    else:
        latent_write_reference(*arguments)
