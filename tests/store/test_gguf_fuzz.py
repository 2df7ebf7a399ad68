"""Whatever values a GGUF file's metadata has: the model's files are derived, or there is a StoreError of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.store import StoreError
from app.store.files import read_model
from app.store.gguf_model import write_derived
from tests.gguf_metadata import byte_level_metadata, sentencepiece_metadata
from tests.store.tiny import metadata, write_gguf

_ARCHITECTURE = [
    "split.count",
    *(key for key in metadata() if key.startswith("llama.")),
    *(f"llama.{key}" for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")),
    *(f"llama.{key}" for key in ("attention.sliding_window", "expert_count", "rope.scale_linear")),
    *(f"llama.rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "yarn_beta_fast")),
]
_TOKENIZER = [
    *(f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens", "token_type", "merges", "scores")),
    *(f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "eot", "padding", "unknown")),
    *(f"tokenizer.ggml.{key}" for key in ("add_bos_token", "add_eos_token", "add_space_prefix")),
    *("tokenizer.chat_template", "general.sampling.temp", "general.sampling.top_k"),
]
_numbers = st.sampled_from([0, 1, 2, 3, 32, 2**16, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 300)
_signed = st.sampled_from([-(2**31), -1, 0, 1, 2, 3, 6, 2**31 - 1])
_floats = st.floats(width=32) | st.sampled_from([0.0, 1.0, 1e-5, 10000.0])
_texts = st.sampled_from(["", " ", "a", "a b", "ab", "ab ", " ab", "llama", "gpt2", "qwen2", "▁", "<0x41>", "\0"])
_values = (
    st.none()
    | st.booleans()
    | _numbers
    | _floats
    | _texts
    | st.lists(_texts, min_size=1, max_size=6)
    | st.lists(_signed, min_size=1, max_size=6)
    | st.lists(_floats, min_size=1, max_size=6)
)
_BASES: list[dict[str, Any]] = [{}, byte_level_metadata("llama-bpe", ("a b", "ab c")), sentencepiece_metadata()]

_EMBEDDING = {"token_embd.weight": np.zeros((300, 32), np.float32)}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=150, deadline=None)
@given(
    base=st.sampled_from(_BASES),
    changes=st.dictionaries(st.sampled_from(_ARCHITECTURE), _values, max_size=3),
    tokenizer=st.dictionaries(st.sampled_from(_TOKENIZER), _values, max_size=3),
)
def test_any_metadata_is_derived_or_refused(
    scratch: Path, base: dict[str, Any], changes: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    file = write_gguf(scratch / "m.gguf", {}, extra=base | changes | tokenizer, tensors=_EMBEDDING)
    try:
        write_derived(file, scratch)
        read_model("m", scratch, [file])
    except StoreError as e:
        assert str(e).startswith(str(scratch))  # noqa: PT017 - a derivation that works is as good
        assert "\n" not in str(e)  # noqa: PT017
