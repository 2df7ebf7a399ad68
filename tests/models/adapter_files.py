"""Adapters of tiny models as PEFT writes them, and their weights merged into the model's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ATTENTION = r"(q_proj|k_proj|v_proj|o_proj|qkv_proj|c_attn|query_key_value)"
ALL_LINEAR = r"(.*proj|c_attn|c_fc|query_key_value|dense.*|gate_up_proj)"
Config = dict[str, Any]


def linear_modules(reference: PreTrainedModel, ending: str = ALL_LINEAR) -> dict[str, nn.Module]:
    """The linear modules whose last name is ``ending``, the output head left out."""
    return {
        name: module
        for name, module in reference.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and "lm_head" not in name
        and re.fullmatch(ending, name.rpartition(".")[2])
    }


def write_adapter(
    directory: Path,
    reference: PreTrainedModel,
    *,
    seed: int = 1,
    rank: int = 4,
    modules: str = ALL_LINEAR,
    size: float = 0.5,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    config: Config | None = None,
    tensors: Callable[[dict[str, Tensor]], object] | None = None,
) -> Path:
    """A random adapter that changes what the model says.

    Args:
        size: how large its matrices are.
        ranks, alphas: ``rank_pattern`` and ``alpha_pattern``.
        config: fields of its configuration.
        tensors: changes what is written.
    """
    directory.mkdir(exist_ok=True)
    fields: Config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": modules,
        "rank_pattern": dict(ranks or {}),
        "alpha_pattern": dict(alphas or {}),
        "bias": "none",
        **(config or {}),
    }
    generator = torch.Generator().manual_seed(seed)
    written: dict[str, Tensor] = {}
    for name, module in linear_modules(reference, modules).items():
        n, k = _shape(module)
        own = _of_pattern(ranks or {}, name, rank)
        down, up = torch.randn(own, k, generator=generator), torch.randn(n, own, generator=generator)
        written[f"base_model.model.{name}.lora_A.weight"] = down / math.sqrt(k) * size
        written[f"base_model.model.{name}.lora_B.weight"] = up / math.sqrt(own) * size
    if tensors is not None:
        tensors(written)
    save_file(written, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(fields))
    return directory


def merged(reference: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The model itself, with an adapter's products added to its weights: as PEFT merges them."""
    from safetensors.torch import load_file

    fields = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    named = dict(reference.named_modules())
    with torch.no_grad():
        for key, down in tensors.items():
            if not key.endswith(".lora_A.weight"):
                continue
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = _of_pattern(fields["rank_pattern"], name, fields["r"])
            alpha = _of_pattern(fields["alpha_pattern"], name, fields["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)
            delta = scale * tensors[key.replace("lora_A", "lora_B")] @ down
            module = named[name]
            weight = module.weight
            assert isinstance(weight, Tensor)
            weight += delta.t() if isinstance(module, Conv1D) else delta
    return reference


def _shape(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.t().shape if isinstance(module, Conv1D) else weight.shape)  # type: ignore[return-value]


def _of_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)
