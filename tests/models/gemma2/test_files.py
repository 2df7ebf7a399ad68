"""A Gemma 2 out of GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf import MODEL_ARCH
from transformers import PreTrainedModel

from app.checkpoints.gguf_header import read_gguf_header
from app.models.architectures import parse_config
from app.models.gemma2.names import NAMES
from app.store import Store, resolve
from app.store.errors import StoreError
from app.store.gguf_config import config_json
from tests.models.gguf_model import is_the_model, write_model
from tests.models.tiny import make_reference
from tests.store.tiny import VOCAB, Array


def write(path: Path, reference: PreTrainedModel, **metadata: Any) -> Path:
    """As llama.cpp's converter does: norms as they are multiplied with. ``__`` in a key is a dot."""
    config = reference.config
    said = {
        "attention__key_length": config.head_dim,
        "attention__value_length": config.head_dim,
        "attention__sliding_window": config.sliding_window,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        **metadata,
    }
    keys = {key.replace("__", "."): value for key, value in said.items()}
    return write_model(path, reference, MODEL_ARCH.GEMMA2, keys, stored=plus_one)


def plus_one(name: str, values: Array) -> Array:
    return values + 1 if name.endswith("norm.weight") else values


def shape(**changes: Any) -> PreTrainedModel:
    # As llama.cpp scales, of all but the 27B.
    return make_reference("gemma2", **{"vocab_size": len(VOCAB), "query_pre_attn_scalar": 16, **changes})


def test_every_name_of_llama_cpp_is_known() -> None:
    assert NAMES.gguf is not None
    for tensor in gguf.MODEL_TENSORS[MODEL_ARCH.GEMMA2]:
        name = f"{gguf.TENSOR_NAMES[tensor].format(bid=0)}.weight"
        assert NAMES.gguf.of(name)[0] != name


def test_a_gguf_file_is_the_model_it_was_written_of(tmp_path: Path) -> None:
    reference = shape()
    is_the_model(write(tmp_path / "m.gguf", reference), reference)


def test_what_files_need_not_say(tmp_path: Path) -> None:
    silent = dict.fromkeys(("attention__sliding_window", "attn_logit_softcapping", "final_logit_softcapping"))
    config = parse_config(config_json(read_gguf_header(write(tmp_path / "m.gguf", shape(), **silent))))
    assert [attention.window for attention in config.attentions] == [4096, None]
    assert {attention.softcap for attention in config.attentions} == {50.0}
    assert config.logit_softcap == 30.0


def test_attention_of_the_27b_is_scaled_by_its_share_of_the_stream(tmp_path: Path) -> None:
    reference = shape(num_hidden_layers=46, hidden_size=32, intermediate_size=32)
    config = parse_config(config_json(read_gguf_header(write(tmp_path / "m.gguf", reference))))
    assert {attention.scale for attention in config.attentions} == {8**-0.5}


def test_metadata_that_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m.gguf", shape(), attn_logit_softcapping=-1.0)
    with pytest.raises(StoreError, match="attn_logit_softcapping"):
        resolve(str(file), Store(tmp_path / "home"))
