"""The real model in three forms: transformers' reference answers, an engine, a served process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.kernels import dispatch
from app.store import ModelFiles
from app.text.tokenizer import Tokenizer
from tests.byte_tokenizer import CHATML_TEMPLATE, VOCAB_SIZE, write_byte_tokenizer
from tests.integration.prompts import PROMPTS, long_prompt
from tests.integration.server import Server, start_server

LONG_TOKENS = 1500
REFERENCE_TOKENS = 64


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leaves how the process runs its kernels as it was: each runner that is made sets it."""
    before = (dispatch._state.mode, dispatch._state.threads, dispatch._state.isa)
    yield
    dispatch.configure(*before)


@pytest.fixture(scope="session")
def tokenizer(smollm2: ModelFiles) -> Tokenizer:
    return Tokenizer.load(smollm2.tokenizer_file)


@pytest.fixture(scope="session")
def prompt_ids(tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The twelve prompts as token ids."""
    ids = {name: tokenizer.encode(text, parse_special=True) for name, text in PROMPTS.items() if text}
    ids["long"] = tokenizer.encode(long_prompt())[:LONG_TOKENS]
    return ids


@pytest.fixture(scope="session")
def reference_tokens(smollm2: ModelFiles, prompt_ids: dict[str, list[int]]) -> dict[str, list[int]]:
    """What transformers, with its own GGUF loader, generates greedily in fp32: 64 tokens a prompt, EOS ignored.

    All prompts but the long one side by side, filled up on the left: the weights are read once for all of them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    (weights,) = smollm2.weights
    model = AutoModelForCausalLM.from_pretrained(smollm2.directory, gguf_file=weights.name, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers: dict[str, list[int]] = {}
    for names in ([name for name in prompt_ids if name != "long"], ["long"]):
        width = max(len(prompt_ids[name]) for name in names)
        missing = [width - len(prompt_ids[name]) for name in names]
        out = model.generate(
            torch.tensor([[0] * count + prompt_ids[name] for count, name in zip(missing, names, strict=True)]),
            attention_mask=torch.tensor([[0] * count + [1] * (width - count) for count in missing]),
            max_new_tokens=REFERENCE_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        answers |= zip(names, out[:, width:].tolist(), strict=True)
    return answers


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """`tuili serve` with the real model on a free loopback port, in its own processes, in the format it comes in."""
    with start_server() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama over bytes, saved the way transformers saves models."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    directory = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(directory)
    write_byte_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_chat(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model with a chat template."""
    directory = tmp_path_factory.mktemp("chat") / "tiny-chat"
    shutil.copytree(tiny_llama, directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML_TEMPLATE}))
    return directory
