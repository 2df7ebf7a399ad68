"""Writes a checkpoint with int8 weights, in the layout that compressed-tensors gave W8A8 models.

Linear layers of the decoder's blocks become int8 with an fp32 scale for each output; embeddings, the output head,
norms, biases and the routers of experts stay as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.kernels.int8 import quantize

_QUANTIZED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp|mlp\.experts\.\d+)\.\w+_proj\.weight")
_SHARD_BYTES = 1 << 30
_INDEX = "model.safetensors.index.json"
_SCHEME = {"num_bits": 8, "type": "int", "symmetric": True}
QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", r"re:.*\.mlp\.gate$"],  # the router of experts
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_SCHEME, "strategy": "channel", "dynamic": False},
            "input_activations": {**_SCHEME, "strategy": "token", "dynamic": True},
        }
    },
}
"""Of ``config.json``."""


def write_int8_checkpoint(
    config: dict[str, Any],
    files: Sequence[Path],
    directory: Path,
    *,
    progress: Callable[[int, int], None],
    stacks: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Quantises the tensors of ``files`` into ``directory``, a shard of 1 GiB at a time.

    Args:
        config: the model's ``config.json``.
        directory: exists; gains ``config.json`` and the weights.
        progress: called with bytes read so far and in all.
        stacks: as of :func:`app.checkpoints.loader.iter_weights`; each expert's tensors are written.

    Returns:
        Bytes of the weights written.

    Raises:
        WeightError: a tensor cannot be read, or there is none to quantise.
        OSError: a file cannot be written.
    """
    stored = list(iter_weights(files, stacks))
    if not any(_QUANTIZED.fullmatch(tensor.name) for tensor in stored):
        raise WeightError(f"{files[0]}: no linear layers that can be quantised, or their names are not known")
    total, done = sum(tensor.nbytes for tensor in stored), 0

    def tensors() -> Iterable[tuple[str, Tensor]]:
        nonlocal done
        for tensor in stored:
            yield from _converted(tensor.name, tensor.read())
            done += tensor.nbytes
            progress(done, total)

    nbytes = _write_shards(tensors(), directory)
    text = json.dumps({**config, "quantization_config": QUANTIZATION_CONFIG}, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    return nbytes


def _converted(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    if _QUANTIZED.fullmatch(name):
        values, scale = quantize(tensor)
        yield name, values
        yield f"{name}_scale", scale.view(-1, 1)
    else:
        # A GGUF file's fp32 tensors were bf16 or less before; norms and biases stay whole.
        yield name, tensor.to(torch.bfloat16) if tensor.dim() > 1 else tensor.contiguous()


def _write_shards(tensors: Iterable[tuple[str, Tensor]], directory: Path) -> int:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        # A scale stays in the file of its weight.
        if pending and size + tensor.nbytes > _SHARD_BYTES and not name.endswith("_scale"):
            shards.append(_write_shard(pending, directory, len(shards)))
            pending, size = {}, 0
        pending[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    shards.append(_write_shard(pending, directory, len(shards)))
    _name_shards(shards, directory, total)
    return total


def _write_shard(tensors: dict[str, Tensor], directory: Path, index: int) -> list[str]:
    save_file(tensors, directory / f"shard-{index}.partial", metadata={"format": "pt"})
    return list(tensors)


def _name_shards(shards: Sequence[Sequence[str]], directory: Path, total: int) -> None:
    """Gives the shards the names that everybody looks for, which tell how many there are."""
    if len(shards) == 1:
        (directory / "shard-0.partial").replace(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        (directory / f"shard-{index}.partial").replace(directory / file)
        weight_map |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (directory / _INDEX).write_text(text + "\n", encoding="utf-8")
