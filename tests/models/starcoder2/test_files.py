"""A StarCoder2's files: as transformers and llama.cpp write them, and what the engine makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import MODEL_ARCH

from app.models.architectures import parse_config
from app.runner.loading import read_model_config
from tests.models.checkpoints import checkpoint
from tests.models.gguf_model import VOCAB_SIZE, check_same, write_checkpoint
from tests.models.scheduled import gives_transformers_tokens
from tests.models.tiny import make_reference

METADATA = {
    "embedding_length": 60,
    "attention.head_count": 6,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": None,
    "attention.layer_norm_epsilon": 1e-5,
}


@pytest.mark.parametrize("variant", ["starcoder2", "starcoder2_sliding"])
def test_tokens_are_transformers_however_they_are_scheduled(tmp_path: Path, variant: str) -> None:
    gives_transformers_tokens(make_reference(variant), checkpoint(tmp_path, variant), short=10)


@pytest.mark.parametrize("variant", ["starcoder2", "starcoder2_sliding"])
def test_a_gguf_file_is_the_checkpoint(tmp_path: Path, variant: str) -> None:
    reference = make_reference(variant, vocab_size=VOCAB_SIZE)
    directory = checkpoint(tmp_path / "m", variant, vocab_size=VOCAB_SIZE)
    window = {"attention.sliding_window": 24} if variant == "starcoder2_sliding" else {}
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.STARCODER2, METADATA | window)
    files = check_same(file, reference, directory)
    assert parse_config(files.config) == read_model_config(directory)
