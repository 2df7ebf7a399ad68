"""Tiny checkpoints in FP8, and the same ones widened by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "model.safetensors"
LARGEST = 448.0
"""Of E4M3."""
Grid = Callable[[tuple[int, ...]], tuple[int, ...]]
"""Shape of a tensor -> how far one of its scales reaches in each dimension."""


def per_tensor(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*(1 for _ in shape[:-2]), *shape[-2:])


def per_output(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*(1 for _ in shape[:-1]), shape[-1])


def in_blocks(rows: int, columns: int) -> Grid:
    return lambda shape: (*(1 for _ in shape[:-2]), rows, columns)


def quantized(tensor: Tensor, steps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values in FP8 and the scale of each block, one of whose values becomes the largest that there is."""
    grid = [-(-size // step) for size, step in zip(tensor.shape, steps, strict=True)]
    largest = torch.zeros(grid)
    places = torch.meshgrid(
        *(torch.arange(n) // step for n, step in zip(tensor.shape, steps, strict=True)), indexing="ij"
    )
    index = torch.stack(places).flatten(1)
    flat = sum(axis * int(torch.tensor(grid[i + 1 :]).prod()) for i, axis in enumerate(index))
    largest.view(-1).scatter_reduce_(0, torch.as_tensor(flat), tensor.abs().flatten().float(), "amax")
    scale = largest / LARGEST
    return (tensor.float() / spread(scale, tensor.shape, steps)).to(torch.float8_e4m3fn), scale


def spread(scale: Tensor, shape: tuple[int, ...] | torch.Size, steps: tuple[int, ...]) -> Tensor:
    """The scale of each value."""
    for dim, (size, step) in enumerate(zip(shape, steps, strict=True)):
        scale = scale.repeat_interleave(step, dim).narrow(dim, 0, size)
    return scale


def write_fp8(
    source: Path,
    out: Path,
    quantization: dict[str, Any],
    grid: Grid,
    *,
    end: str = "_scale_inv",
    shape_of_scale: Callable[[Tensor], Tensor] = lambda scale: scale,
    kept: tuple[str, ...] = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "shared_expert_gate.weight"),
) -> tuple[Path, Path]:
    """A checkpoint whose linear layers are in FP8, and one of what these amount to in fp32.

    Args:
        source: a floating checkpoint.
        grid: of the scales.
        end: of the names of scales.
        shape_of_scale: makes the stored form of a scale.
        kept: ends of the names of matrices that stay floating.
    """
    config = json.loads((source / "config.json").read_text())
    stored, wide = {}, {}
    for name, tensor in load_file(source / FILE).items():
        if tensor.dim() < 2 or name.endswith(kept):
            stored[name] = wide[name] = tensor
            continue
        steps = grid(tuple(tensor.shape))
        values, scale = quantized(tensor, steps)
        stored |= {name: values, name + end: shape_of_scale(scale)}
        wide[name] = values.float() * spread(scale, tensor.shape, steps)
    fp8, widened = out / "fp8", out / "widened"
    for directory, tensors, said in ((fp8, stored, {"quantization_config": quantization}), (widened, wide, {})):
        directory.mkdir(parents=True)
        save_file(tensors, directory / FILE, metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(config | said))
    return fp8, widened
