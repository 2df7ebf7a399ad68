"""Writes a checkpoint with int8 weights, in the layout that compressed-tensors gave W8A8 models.

Linear layers become int8 with an fp32 scale for each output; embeddings, the output head, norms, biases, the routers of
experts and what the served model does not read stay as they are; what it computes is left out. Which tensors are a
linear layer's says the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from app.checkpoints.base import StoredTensor
from app.checkpoints.header import WeightError
from app.checkpoints.loader import iter_weights
from app.kernels.int8 import quantize
from app.models.architectures import find, parse_config
from app.models.config import ModelConfig
from app.models.names import DecoderNames
from app.quant.formats.int8 import outputs_dim
from app.quant.placement import Placement, WeightFormat

_SHARD_BYTES = 1 << 30
_INDEX = "model.safetensors.index.json"
_SCHEME = {"num_bits": 8, "type": "int", "symmetric": True}
_IN_A_LAYER = re.compile(r".*\.\d+\.(.+)\.weight")
"""A weight's name without the prefix that ends with the number of its layer."""
_TARGETS: Final = ("Linear", "Conv1D")
"""What transformers calls modules that keep [N, K], and those that keep [K, N]."""
Outputs = Mapping[str, int | None]
"""Name of a tensor that the model reads -> the dimension that counts a linear layer's outputs; None: it is none's
weight, or stays floating."""


def write_int8_checkpoint(
    config: dict[str, Any], files: Sequence[Path], directory: Path, *, progress: Callable[[int, int], None]
) -> int:
    """Quantises the tensors of ``files`` into ``directory``, a shard of 1 GiB at a time.

    Args:
        config: the model's ``config.json``.
        directory: exists; gains ``config.json`` and the weights.
        progress: called with bytes read so far and in all.

    Returns:
        Bytes of the weights written.

    Raises:
        ConfigError: nobody serves such a model.
        WeightError: a tensor cannot be read, or there is none to quantise.
        OSError: a file cannot be written.
    """
    model_config = parse_config(config)
    outputs, names = _outputs(model_config), find(model_config.architecture).names.checkpoint
    listed = iter_weights(files, names.stacks, model_config.fp8)
    stored = [tensor for tensor in listed if not tensor.name.endswith(names.computed)]
    if all(outputs.get(tensor.name) is None for tensor in stored):
        raise WeightError(f"{files[0]}: no linear layers that can be quantised, or their names are not known")
    total, done = sum(tensor.nbytes for tensor in stored), 0

    def tensors() -> Iterable[tuple[str, Tensor]]:
        nonlocal done
        for tensor in stored:
            yield from _converted(tensor.name, tensor.read(), outputs.get(tensor.name))
            done += tensor.nbytes
            progress(done, total)

    nbytes = _write_shards(tensors(), directory)
    quantization = _quantization_config(stored, outputs, names)
    text = json.dumps({**config, "quantization_config": quantization}, indent=2, ensure_ascii=False)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")
    return nbytes


def _outputs(model_config: ModelConfig) -> Outputs:
    """Of the model as it is built in a format whose head and routers stay floating, under every name that its
    checkpoints may give a tensor."""
    family = find(model_config.architecture)
    build = family.build if family.generates else family.build_encoder
    placement = Placement(torch.bfloat16, torch.device("meta"), WeightFormat.W8A8)
    model = build(model_config, max_positions=1, placement=placement)
    dims = {name: outputs_dim(destination) for name, destination in model.destinations().items()}
    twins = model.twins()
    return {stored: dim for name, dim in dims.items() for stored in (name, *twins.get(name, ()))}


def _quantization_config(stored: Sequence[StoredTensor], outputs: Outputs, names: DecoderNames) -> dict[str, Any]:
    """What ``config.json`` says of the weights written; the modules that stay floating are named for other readers."""
    matrices = [tensor.name for tensor in stored if len(tensor.shape) == 2]
    read = {name: outputs[name] for name in matrices if name in outputs}
    floating = [found[1] for name, dim in read.items() if dim is None and (found := _IN_A_LAYER.fullmatch(name))]
    beside = [prefix for prefix in names.beside if any(name.startswith(prefix) for name in matrices)]
    patterns = [rf"re:.*\.{re.escape(module)}$" for module in floating] + [f"re:{re.escape(x)}.*" for x in beside]
    dims = sorted({dim for dim in read.values() if dim is not None})
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": [names.head, *dict.fromkeys(patterns)],
        "config_groups": {
            "group_0": {
                "targets": [_TARGETS[dim] for dim in dims],
                "weights": {**_SCHEME, "strategy": "channel", "dynamic": False},
                "input_activations": {**_SCHEME, "strategy": "token", "dynamic": True},
            }
        },
    }


def _converted(name: str, tensor: Tensor, outputs: int | None) -> Iterable[tuple[str, Tensor]]:
    """What is written of a tensor.

    Args:
        outputs: the dimension that counts a linear layer's outputs; None of other tensors.
    """
    if outputs is None:
        # A GGUF file's fp32 tensors were bf16 or less before; norms and biases stay whole.
        yield name, tensor.to(torch.bfloat16) if tensor.dim() > 1 else tensor.contiguous()
        return
    values, scale = quantize(tensor.movedim(outputs, 0))
    yield name, values.movedim(0, outputs).contiguous()
    yield f"{name}_scale", scale.unsqueeze(1 - outputs)


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
    """Gives the shards their usual names, which tell how many there are, and writes the index of tensors."""
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
