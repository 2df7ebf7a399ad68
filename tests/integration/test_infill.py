"""A suffix, answered by a served model directory whose tokenizer has the tokens for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import AddedToken

from tests.byte_tokenizer import VOCAB_SIZE, build_byte_tokenizer
from tests.integration.server import Server, start_server

PREFIX, SUFFIX, MIDDLE = range(VOCAB_SIZE, VOCAB_SIZE + 3)


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random model over bytes with the tokens of Qwen-Coder, which do not call themselves special."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE + 3,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    directory = tmp_path_factory.mktemp("coder") / "tiny-coder"
    Qwen2ForCausalLM(config).save_pretrained(directory)
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(f"<|fim_{name}|>", special=False, normalized=False) for name in ("prefix", "suffix", "middle")]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def coding(coder: Path) -> Iterator[Server]:
    with start_server("--model", str(coder), "--dtype", "float32") as running:
        yield running


def complete(server: Server, **body: Any) -> dict[str, Any]:
    body = {"temperature": 0, "max_tokens": 8, "return_token_ids": True, **body}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()
    content: dict[str, Any] = answer.json()
    return content


def test_a_suffix_is_the_prompt_of_the_models_own_tokens(coding: Server) -> None:
    ids = [PREFIX, *b"def f(", SUFFIX, *b") -> int:", MIDDLE]
    filled = complete(coding, prompt="def f(", suffix=") -> int:")
    raw = complete(coding, prompt=ids)
    spelt = complete(coding, prompt="<|fim_prefix|>def f(<|fim_suffix|>) -> int:<|fim_middle|>")
    assert filled["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"] == len(ids)
    first, second, third = (answer["choices"][0]["token_ids"] for answer in (filled, raw, spelt))
    assert first == second == third


def test_what_the_texts_spell_is_text(coding: Server) -> None:
    typed = complete(coding, prompt="<|fim_middle|>", suffix="x")
    assert typed["choices"][0]["prompt_token_ids"] == [PREFIX, *b"<|fim_middle|>", SUFFIX, *b"x", MIDDLE]


def test_the_default_model_has_no_such_tokens(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "suffix": "b"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")
