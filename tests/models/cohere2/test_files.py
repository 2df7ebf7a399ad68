"""A Cohere's files: as transformers and llama.cpp write them, and what the engine makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH

from app.models.architectures import parse_config
from app.runner.loading import read_model_config
from app.store import Store, resolve
from app.store.errors import StoreError
from tests.models.checkpoints import checkpoint
from tests.models.gguf_model import VOCAB_SIZE, check_same, write_checkpoint
from tests.models.scheduled import gives_transformers_tokens
from tests.models.tiny import make_reference

COMMON: dict[str, Any] = {
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": None,
    "attention.layer_norm_epsilon": 1e-5,
    "rope.dimension_count": 16,
    "rope.scaling.type": "none",
}


@pytest.mark.parametrize(("variant", "short"), [("cohere2", (10, 12)), ("cohere", 10)])
def test_tokens_are_transformers_however_they_are_scheduled(tmp_path: Path, variant: str, short: Any) -> None:
    gives_transformers_tokens(make_reference(variant), checkpoint(tmp_path, variant), short=short)


def test_a_gguf_file_is_the_checkpoint(tmp_path: Path) -> None:
    """All layers but every fourth slide there: the file does not say it."""
    shape: dict[str, Any] = {"sliding_window_pattern": 4, "num_hidden_layers": 5, "vocab_size": VOCAB_SIZE}
    reference, directory = make_reference("cohere2", **shape), checkpoint(tmp_path / "m", "cohere2", **shape)
    own = {"attention.sliding_window": 24, "logit_scale": 0.25}
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.COHERE2, COMMON | own)
    files = check_same(file, reference, directory)
    assert parse_config(files.config) == read_model_config(directory)


def test_a_gguf_file_of_the_first_generation(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "tie_word_embeddings": True, "attention_bias": False}
    reference, directory = make_reference("cohere", **shape), checkpoint(tmp_path / "m", "cohere", **shape)
    own = {"logit_scale": 0.5, "rope.freq_base": 500_000.0}
    file = write_checkpoint(tmp_path / "m.gguf", directory, MODEL_ARCH.COMMAND_R, COMMON | own)
    check_same(file, reference, directory)
    norms = {"blk.0.attn_q_norm.weight": np.ones((4, 16), dtype=np.float32)}
    normed = write_checkpoint(tmp_path / "normed.gguf", directory, MODEL_ARCH.COMMAND_R, COMMON | own, extra=norms)
    with pytest.raises(StoreError, match="use_qk_norm"):
        resolve(str(normed), Store(tmp_path / "home"))
