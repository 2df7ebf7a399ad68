"""A Falcon-H1 out of a GGUF file: llama.cpp's converter multiplies the factors into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH
from torch import Tensor

from app.models.architectures import parse_config
from tests.models.gguf_model import PROMPT, VOCAB_SIZE, resolved, write_model
from tests.models.scheduled import NUM_TOKENS, greedy
from tests.models.tiny import make_reference
from tests.runner.driver import Request, run, runner_of
from tests.store.tiny import Array

METADATA = {
    "attention.key_length": 16,
    "attention.value_length": 16,
    "rope.freq_base": 10_000.0,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 24,
    "ssm.time_step_rank": 4,
}
FILES = {
    "falcon_h1": {**METADATA, "ssm.inner_size": 128, "ssm.group_count": 1},
    "falcon_h1_normed": {**METADATA, "ssm.inner_size": 64, "ssm.group_count": 2},
}
FACTORS = {
    "self_attn.q_proj": ("attention_in_multiplier",),
    "self_attn.k_proj": ("attention_in_multiplier", "key_multiplier"),
    "self_attn.v_proj": ("attention_in_multiplier",),
    "self_attn.o_proj": ("attention_out_multiplier",),
    "mamba.out_proj": ("ssm_out_multiplier",),
    "embed_tokens": ("embedding_multiplier",),
    "lm_head": ("lm_head_multiplier",),
}


@dataclass(frozen=True)
class _Converted:
    """A model's tensors as the converter makes them."""

    reference: Any

    @property
    def config(self) -> Any:
        return self.reference.config

    def state_dict(self) -> dict[str, Tensor]:
        tensors = self.reference.state_dict()
        return {self._name(name): self._values(name, tensor) for name, tensor in tensors.items()}

    def _name(self, name: str) -> str:
        return name.replace("mamba.dt_bias", "mamba.dt_proj.bias")

    def _values(self, name: str, tensor: Tensor) -> Tensor:
        config = self.config
        for part, factors in FACTORS.items():
            if f"{part}." in name:
                for factor in factors:
                    tensor = tensor * getattr(config, factor)
        inner, of_groups = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        match name.split(".")[-2:]:
            case ["gate_proj", _]:
                tensor = tensor * config.mlp_multipliers[0]
            case ["down_proj", _]:
                tensor = tensor * config.mlp_multipliers[1]
            case ["in_proj", _]:
                sizes = torch.tensor([inner, inner, of_groups, of_groups, config.mamba_n_heads])
                rows = torch.tensor(config.ssm_multipliers).repeat_interleave(sizes) * config.ssm_in_multiplier
                tensor = tensor * (rows[:, None] if tensor.dim() == 2 else rows)
            case [_, "A_log"]:
                tensor = -tensor.exp()[:, None]
            case [_, "D"]:
                tensor = tensor[:, None]
            case ["conv1d", "weight"]:
                tensor = tensor.squeeze(1)
            case ["norm", _]:
                tensor = tensor.view(config.mamba_n_groups, -1)
        return tensor


def contiguous(_name: str, values: Array) -> Array:
    return np.ascontiguousarray(values)


@pytest.mark.parametrize("variant", FILES)
def test_a_file_is_the_model_it_was_written_of(tmp_path: Path, variant: str) -> None:
    reference = make_reference(
        variant, vocab_size=VOCAB_SIZE, tie_word_embeddings=False, time_step_limit=[0.0, float("inf")], mamba_d_conv=4
    )
    file = write_model(
        tmp_path / "m.gguf", _Converted(reference), MODEL_ARCH.FALCON_H1, FILES[variant], stored=contiguous
    )
    files = resolved(file)
    factors = {name: 1.0 for name in reference.config.to_dict() if name.endswith("_multiplier")}
    plain = reference.config.to_dict() | factors | {"ssm_multipliers": None, "mlp_multipliers": None}
    assert parse_config(files.config) == parse_config(plain | {"architectures": [type(reference).__name__]})
    request = Request(0, PROMPT, list(range(8)))
    run(runner_of(files.directory, weights=tuple(map(str, files.weights))), [request], NUM_TOKENS)
    assert request.outputs == greedy(reference, PROMPT, draft=request.outputs)
