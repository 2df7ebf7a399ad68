"""Copies of what a runner's slots and pages hold, for tests and for debugging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from app.contract.info import KVCacheSpec
from app.kernels.pages import Pages
from app.runner.input_batch import InputBatch
from app.runner.sampler import Sampler


@dataclass(frozen=True, slots=True)
class RunnerSnapshot:
    """Copies on the host of what requests use: without the slot and blocks of rows that pad a step."""

    last_tokens: list[int]
    """The token that each slot sampled last."""
    tables: list[list[list[int]]]
    """Entries of each slot's block table, by KV group and slot."""
    pages: list[dict[str, Tensor]]
    """Tensors of the pages of each layer that keeps any, [num_blocks, ...], by their name in
    :class:`~app.kernels.types.LayerKVCache` or :class:`~app.kernels.types.LayerState`."""


def take_snapshot(spec: KVCacheSpec, pages: Sequence[Pages], batch: InputBatch, sampler: Sampler) -> RunnerSnapshot:
    """Copies what has been computed so far."""
    num_blocks = {layer: group.num_blocks for group in spec.groups for layer in group.layers}
    return RunnerSnapshot(
        last_tokens=sampler.last_tokens(),
        tables=batch.tables(),
        pages=[_copies(of_layer, num_blocks[layer]) for layer, of_layer in enumerate(pages) if layer in num_blocks],
    )


def _copies(pages: Pages, num_blocks: int) -> dict[str, Tensor]:
    named = ((field.name, getattr(pages, field.name)) for field in fields(pages))
    return {name: value[:num_blocks].cpu().clone() for name, value in named if isinstance(value, Tensor)}
