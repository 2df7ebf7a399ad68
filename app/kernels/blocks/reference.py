"""Specification of products with weights in blocks, in plain torch.

T tokens, N / K output / input features of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.blocks.layout import GROUP, PANEL
from app.kernels.blocks.pack import panel_parts
from app.kernels.blocks.planes import codes_of, scales_of
from app.kernels.linear.pack import positions_of
from app.kernels.types import ACT_GROUP, Act, BlockWeight


@dataclass(frozen=True, slots=True)
class PlainBlocks:
    """A weight in blocks as plain tensors: its element is ``integers * scales + minima``."""

    integers: Tensor
    """[N, K] int16."""
    scales: Tensor
    """[N, K / 16] fp32."""
    minima: Tensor
    """[N, K / 16] fp32; zeros of types without."""
    bias: Tensor | None
    """[N] fp32."""

    def values(self) -> Tensor:
        """[N, K] fp32, rounded after the product and after the sum."""
        rows = self.integers.shape[0]
        scaled = self.integers.float().view(rows, -1, 16) * self.scales[..., None]
        return (scaled + self.minima[..., None]).view(rows, -1)


def unpack_blocks(weight: BlockWeight) -> PlainBlocks:
    """A weight in blocks as plain tensors, rows in order."""
    integers, scales, minima = [], [], []
    for panel in range(weight.panels.shape[0]):
        layout, words, fields = panel_parts(weight, panel)
        of_rows = words.t().reshape(PANEL, -1, layout.words)
        integers.append(codes_of(layout, of_rows))
        parts = [
            field.view(field.shape[0], count, PANEL, size).permute(2, 0, 1, 3).reshape(PANEL, field.shape[0], -1)
            for (size, count), field in zip(layout.fields, fields, strict=True)
        ]
        scale, minimum = scales_of(layout, parts)
        scales.append(scale)
        minima.append(torch.zeros_like(scale) if minimum is None else minimum)
    at = positions_of(weight, 0, weight.out_features)
    bias = None if weight.bias is None else weight.bias[at]
    return PlainBlocks(torch.cat(integers)[at], torch.cat(scales)[at], torch.cat(minima)[at], bias)


def matmul_blocks(x: Act, weight: BlockWeight) -> Tensor:
    """``x @ weight.T`` [T, N] in fp32 for int8 x, bias not added: each group of 32 by itself, in order of K."""
    if x.scale is None:
        raise ValueError("a weight in blocks takes int8 activations")
    plain = unpack_blocks(weight)
    y_TN = torch.zeros(x.values.shape[0], weight.out_features)
    for group in range(weight.in_features // GROUP):
        product_TN = torch.zeros_like(y_TN)
        for half in (0, 1):
            at = slice(group * GROUP + half * 16, group * GROUP + half * 16 + 16)
            scale_N, minimum_N = (each[:, 2 * group + half] for each in (plain.scales, plain.minima))
            values_Tg = x.values[:, at].float()
            # Exact: the sums have 20 bits at most.
            product_TN += torch.mm(values_Tg, plain.integers[:, at].float().t()) * scale_N
            product_TN += values_Tg.sum(dim=1, keepdim=True) * minimum_N
        y_TN += product_TN * x.scale[:, group * GROUP // ACT_GROUP, None]
    return y_TN
