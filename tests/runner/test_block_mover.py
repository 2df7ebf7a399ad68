"""Blocks that are copied out of the pages and back hold what they held, in every layer, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.runner import block_mover
from app.runner.model_runner import ModelRunner
from app.runner.staging import Returns
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, run, runner_of

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "keys and values, windows": ("gemma3", {}),
    "scales": ("llama", {"kv_cache_dtype": "int8"}),
    "states": ("qwen3_next", {}),
    "latents": ("deepseek_v2", {"kv_cache_dtype": "bfloat16"}),
}
FROM, TO = [1, 3, 0], [9, 8, 11]


def copies_blocks(runner: ModelRunner) -> None:
    run(runner, [Request(0, list(range(1, 60)), [0, 1, 2, 3])], 3)
    groups = range(len(runner.info.kv_cache.groups))
    for group in groups:
        records = runner.read_blocks(group, FROM)
        taken = records.take()
        assert [len(record) for record in taken] == [runner.info.kv_cache.groups[group].bytes_per_block] * 3
        runner.write_blocks(group, TO, taken)
    for layer in runner.snapshot().pages:
        for name, values in layer.items():
            if values.numel():
                assert torch.equal(bits(values, FROM), bits(values, TO)), name
                assert not torch.equal(bits(values, FROM[:1]), bits(values, FROM[1:2])), "not all alike"


def bits(values: torch.Tensor, blocks: Sequence[int]) -> torch.Tensor:
    """What blocks hold, as bytes: what no token has written may be no number."""
    return values[list(blocks)].flatten(1).contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("as_on_gpu", [False, True], ids=["host", "as on a GPU"])
def test_blocks_come_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_on_gpu: bool) -> None:
    variant, options = VARIANTS[name]
    cpu = torch.device("cpu")
    if as_on_gpu:
        monkeypatch.setattr(block_mover, "_Host", lambda tensors: block_mover._Device(tensors, cpu, Returns(cpu)))
    copies_blocks(runner_of(save(make_reference(variant), tmp_path), kernels="reference", **options))


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(VARIANTS))
def test_blocks_come_back_on_a_gpu(name: str, tmp_path: Path) -> None:
    variant, options = VARIANTS[name]
    copies_blocks(runner_of(save(make_reference(variant), tmp_path), device="cuda", dtype="auto", **options))


def test_pages_of_another_shape_have_another_layout(tmp_path: Path) -> None:
    checkpoint = save(make_reference("llama"), tmp_path)
    options: list[dict[str, Any]] = [{}, {"kv_cache_dtype": "int8"}, {"block_size": 32}, {"max_model_len": 64}]
    layouts = {runner_of(checkpoint, kernels="reference", **changed).page_layout for changed in options}
    assert len(layouts) == len(options)
    assert runner_of(checkpoint, kernels="reference").page_layout in layouts
