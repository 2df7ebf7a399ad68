"""A Phi-3's files: as transformers and llama.cpp write them, and what the engine makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH
from safetensors.torch import load_file
from tokenizers import Tokenizer

from app.models.architectures import parse_config
from app.quality.quantize import write as quantize
from app.store import Store, resolve
from app.store.errors import StoreError
from app.store.files import find_weights, read_model
from app.store.gguf_tokenizer import build_tokenizer
from tests.gguf_metadata import sentencepiece_metadata
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.gguf_model import VOCAB_SIZE, check_same, write_checkpoint
from tests.models.scheduled import TOKENS, answers, engine_of, gives_transformers_tokens, greedy
from tests.models.tiny import CONTEXT, LONG_ROPE, make_reference
from tests.runner.driver import runner_of
from tests.store.tiny import write_tokenizer

METADATA: dict[str, Any] = {
    "embedding_length": 96,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": 12,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.attn_factor": (1 + np.log(CONTEXT / 64) / np.log(64)) ** 0.5,
    "attention.sliding_window": 0,
}
FACTORS = {
    "rope_factors_short.weight": np.array(LONG_ROPE["short_factor"], dtype=np.float32),
    "rope_factors_long.weight": np.array(LONG_ROPE["long_factor"], dtype=np.float32),
}
ALL_LONG: dict[str, Any] = {"rope_parameters": {**LONG_ROPE, "short_factor": LONG_ROPE["long_factor"]}}
"""What transformers turns every sequence by beyond the original context."""


def test_a_long_context_turns_short_sequences_by_long_factors_too(tmp_path: Path) -> None:
    """One set for all: keys in pages were turned by it, whoever finds them."""
    gives_transformers_tokens(make_reference("phi3", **ALL_LONG), checkpoint(tmp_path, "phi3"), short=10)


def test_within_the_original_context_tokens_are_transformers(tmp_path: Path) -> None:
    """Which has no long sequence there either."""
    reference, directory = make_reference("phi3"), checkpoint(tmp_path, "phi3")
    prompts = [TOKENS[:30], TOKENS[40:43]]
    got = answers(engine_of(directory, max_model_len=64), prompts, 32)
    expected = [greedy(reference, prompt, 32, answer) for prompt, answer in zip(prompts, got, strict=True)]
    assert got == expected
    assert answers(engine_of(directory, max_model_len=65), prompts, 32) != expected


def test_an_int8_checkpoint_has_int8_projections(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "m", "phi3", vocab_size=VOCAB_SIZE), tmp_path / "int8"
    write_tokenizer(source / "tokenizer.json")
    quantize(read_model("model", source, find_weights(source)), out)
    written = load_file(out / "model.safetensors")
    parts = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert {written[f"model.layers.1.{part}.weight"].dtype for part in parts} == {torch.int8}
    error = served_logprobs(runner_of(out, max_model_len=64)) - expected_logprobs(source)
    assert error.square().mean() < 0.02 * expected_logprobs(source).var()


def test_a_gguf_file_is_the_checkpoint(tmp_path: Path) -> None:
    reference = make_reference("phi3", vocab_size=VOCAB_SIZE)
    directory = checkpoint(tmp_path / "m", "phi3", vocab_size=VOCAB_SIZE)
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.PHI3, METADATA, extra=FACTORS)
    files = check_same(file, reference, directory, max_model_len=64)
    served = served_logprobs(runner_of(files.directory, weights=tuple(map(str, files.weights))))
    long = checkpoint(tmp_path / "long", "phi3", **ALL_LONG, vocab_size=VOCAB_SIZE)
    torch.testing.assert_close(served, expected_logprobs(long), rtol=0, atol=1e-4)


def test_a_gguf_file_without_factors(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"rope_parameters": None, "sliding_window": 24, "vocab_size": VOCAB_SIZE}
    reference, directory = make_reference("phi3", **shape), checkpoint(tmp_path / "m", "phi3", **shape)
    own = {"rope.dimension_count": 16, "rope.scaling.attn_factor": None, "attention.sliding_window": 24}
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.PHI3, METADATA | own)
    files = check_same(file, reference, directory)
    assert {attention.window for attention in parse_config(files.config).attentions} == {24}


@pytest.mark.parametrize(
    ("factors", "metadata", "message"),
    [
        (
            {"rope_factors_long.weight": FACTORS["rope_factors_long.weight"]},
            {},
            "rope_factors_short.weight' is missing",
        ),
        ({**FACTORS, "rope_factors_long.weight": np.ones(5, dtype=np.float32)}, {}, "long_factor has 5 entries"),
        ({**FACTORS, "rope_factors_long.weight": np.ones((2, 3), dtype=np.float32)}, {}, "not a rotary table"),
        ({**FACTORS, "rope_factors_long.weight": np.zeros(6, dtype=np.float32)}, {}, "long_factor"),
        (FACTORS, {"rope.scaling.type": "yarn"}, "'yarn' beside LongRoPE's factors"),
        (FACTORS, {"rope.scaling.original_context_length": 1}, "original_max_position_embeddings"),
    ],
)
def test_factors_that_are_refused(
    tmp_path: Path, factors: dict[str, Any], metadata: dict[str, Any], message: str
) -> None:
    directory = checkpoint(tmp_path / "m", "phi3", vocab_size=VOCAB_SIZE)
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.PHI3, METADATA | metadata, extra=factors)
    with pytest.raises(StoreError, match=message):
        resolve(str(file), Store(tmp_path / "home"))


def test_control_tokens_of_a_gguf_file_swallow_the_space_behind_them(tmp_path: Path) -> None:
    """As their declarations in transformers' files say, which GGUF files drop; not those that begin a text."""
    metadata = sentencepiece_metadata(add_bos_token=False, add_space_prefix=False)
    directory = checkpoint(tmp_path / "m", "phi3", vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.PHI3, METADATA | metadata, extra=FACTORS)
    tokenizer = Tokenizer.from_file(str(resolve(str(file), Store(tmp_path / "home")).tokenizer_file))
    plain = build_tokenizer(metadata)
    assert tokenizer.encode("</s> \n the").ids == plain.encode("</s>the").ids != plain.encode("</s> \n the").ids
    assert tokenizer.encode("<s> the").ids == plain.encode("<s> the").ids != plain.encode("<s>the").ids
