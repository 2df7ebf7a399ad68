"""Configs of Granite, a GGUF file of one, and its factors: in weights, among ranks, in files of packed weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH
from torch import Tensor
from transformers import GraniteConfig

from app.models.architectures import parse_config
from app.models.config import ConfigError
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.gguf_model import VOCAB_SIZE, is_the_model, permuted, resolved, write_model
from tests.models.served import native
from tests.models.test_config import attention_of, mlp_of
from tests.models.tiny import make_reference
from tests.runner.driver import engine_config, runner_of
from tests.runner.ranks import run_on_ranks

GRANITE_3_2B: dict[str, Any] = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}


def test_the_2b_of_the_hub() -> None:
    config = parse_config(GRANITE_3_2B)
    assert (config.embedding_scale, config.logit_scale, config.logit_softcap) == (12, 0.125, None)
    attention, mlp = attention_of(config), mlp_of(config)
    assert (attention.scale, attention.output_scale, mlp.output_scale) == (0.015625, 0.22, 0.22)
    assert parse_config(GraniteConfig(**GRANITE_3_2B).to_dict()) == config


def test_absent_factors_are_one() -> None:
    names = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
    config = parse_config({name: value for name, value in GRANITE_3_2B.items() if name not in names})
    assert (config.embedding_scale, config.logit_scale) == (1, 1)
    assert (attention_of(config).scale, attention_of(config).output_scale) == (1, 1)
    theirs = GraniteConfig()
    assert [getattr(theirs, name) for name in names] == [1] * 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_multiplier", 0),
        ("logits_scaling", 0.0),
        ("residual_multiplier", -1),
        ("embedding_multiplier", "12"),
        ("sliding_window", 64),
        ("num_local_experts", 4),
        ("logit_softcapping", 30.0),
    ],
)
def test_what_would_change_numbers_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        parse_config({**GRANITE_3_2B, field: value})


METADATA = {
    "attention.scale": 0.11,
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "logit_scale": 6.0,
    "tokenizer.ggml.pre": "refact",
}


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = make_reference("granite", vocab_size=VOCAB_SIZE)
    file = write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.GRANITE, METADATA, stored=permuted(reference))
    is_the_model(file, reference)


def test_a_file_without_factors_is_a_llama(tmp_path: Path) -> None:
    reference = make_reference("granite", vocab_size=VOCAB_SIZE)
    config = parse_config(resolved(write_model(tmp_path / "m.gguf", reference, MODEL_ARCH.GRANITE, {})).config)
    assert (config.embedding_scale, config.logit_scale) == (1, 1)
    assert (attention_of(config).scale, attention_of(config).output_scale) == (0.25, 1)


def test_ranks_scale_and_cap_their_share_of_the_logits(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "m", "granite", attention_bias=True)
    expected = expected_logprobs(directory)
    for served in run_on_ranks(engine_config(directory, tensor_parallel_size=2), tmp_path / "meeting", served_logprobs):
        torch.testing.assert_close(served, expected, rtol=0, atol=1e-4)


@native
def test_packed_weights_of_another_factor_are_packed_again(tmp_path: Path) -> None:
    directory, packed = checkpoint(tmp_path / "m", "granite"), tmp_path / "packed"

    def served() -> Tensor:
        return served_logprobs(runner_of(directory, quantization="int8", packed_cache=str(packed)))

    first = served()
    assert torch.equal(served(), first)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"residual_multiplier": 0.5}))
    assert not torch.allclose(served(), first, atol=1e-2)
    assert ((served() - expected_logprobs(directory)).square().mean() / first.var()).item() < 0.02
