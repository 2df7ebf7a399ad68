"""Tiny mixtures of experts as others hold them: llama.cpp's converter, and transformers in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.store.tiny import Array

ROUNDED_BFLOAT16, ROUNDED_INT8 = 0.25, 0.2
"""How far from fp32 the two formats may be: where two experts are almost equal another may be chosen. transformers'
own bf16 is 0.18 from its fp32 on the tiny Mixtral."""


def are_near(served: Tensor, expected: Tensor) -> None:
    """That most log-probabilities of rounded weights are: where two experts are almost equal another may be chosen."""
    assert (served - expected).square().median() < 0.02 * expected.var()


def stacked(reference: PreTrainedModel) -> Any:
    """A model that :func:`tests.models.gguf_model.write_model` writes, its experts stacked."""
    return _Stacked(reference)


@dataclass(frozen=True)
class _Stacked:
    """A model whose tensors are those that llama.cpp's converter stacks: a part of all experts in each."""

    reference: PreTrainedModel

    @property
    def config(self) -> Any:
        return self.reference.config

    def state_dict(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.reference.state_dict().items():
            end = name.split(".", 3)[-1]
            name = name.removesuffix(end) + _RENAMED.get(end, end)
            if name.endswith((".experts.gate_up_proj", ".shared_expert.gate_up_proj")):
                gate, up = tensor.chunk(2, dim=-2)
                base = name.removesuffix("gate_up_proj")
                tensors |= {f"{base}gate_proj.weight": gate, f"{base}up_proj.weight": up}
            elif name.endswith(".experts.down_proj"):
                tensors[f"{name}.weight"] = tensor
            else:
                tensors[name] = tensor
        return tensors


_RENAMED = {
    "block_sparse_moe.experts.gate_up_proj": "mlp.experts.gate_up_proj",
    "block_sparse_moe.experts.down_proj": "mlp.experts.down_proj",
    "block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight",
    "shared_mlp.input_linear.weight": "mlp.shared_expert.gate_up_proj",
    "mamba.dt_bias": "mamba.dt_proj.bias",
    "mlp.gate.moe_statics.e_score_correction_bias": "mlp.moe_statics.e_score_correction.bias",
    "mlp.gate.e_score_correction_bias": "mlp.gate.e_score_correction.bias",
}
"""As in memory -> as the converter knows them."""


def flat_gate(name: str, values: Array) -> Array:
    """The gate of a shared expert as the converter squeezes it."""
    return values[0] if name.endswith("shared_expert_gate.weight") else values


def save_stacks(reference: PreTrainedModel, directory: Path) -> Path:
    """The tensors that transformers 5 has in memory, as a checkpoint."""
    directory.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    if reference.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    reference.config.architectures = [type(reference).__name__]
    reference.config.save_pretrained(directory)
    return directory
