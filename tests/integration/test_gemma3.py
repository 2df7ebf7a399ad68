"""Gemma 3 270M with its trained weights: transformers' tokens and token ids, and the default format served."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import httpx
import pytest
import tokenizers
import torch
from gguf.quants import dequantize
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from app.contract.request import SamplingParams
from app.engine.core import EngineCore
from app.models.architectures import find
from app.store import ModelFiles, SilentProgress, Store, pull
from app.text.tokenizer import Tokenizer
from tests.integration.engines import make_engine, request, run
from tests.integration.prompts import PROMPTS, long_prompt
from tests.integration.server import Server, start_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NAME = "gemma3-270m"
NUM_TOKENS = 48
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
TEXTS = (
    *PROMPTS.values(),
    "  two spaces, then   three ",
    "lines\n\n\nand lines\r\n\n",
    "    indented:\n        code\n\treturn x",
    "emoji 😀👨‍👩‍👧🏳️‍🌈",
    "中文，你好世界。 مرحبا ሀሁሂ ꙮ 𓀀",
    "naïve café Ω≈ç√",
    "1234567890",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<b>html</b> <unused5> <table>",
    "\x00\x01",
    "\n",
    " ",
)


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    """The model, in the user's own store."""
    return pull(NAME, Store(), SilentProgress())


@pytest.fixture(scope="module")
def prompts(files: ModelFiles) -> dict[str, list[int]]:
    """Twelve prompts, one of them longer than the window."""
    tokenizer = Tokenizer.load(files.tokenizer_file)
    ids = {name: tokenizer.encode(text) for name, text in PROMPTS.items() if text}
    ids["long"] = tokenizer.encode(long_prompt())[:700]
    assert len(ids) == 12
    return ids


@pytest.fixture(scope="module")
def engine(files: ModelFiles) -> EngineCore:
    return make_engine(files, dtype="float32", quantization="none")


@pytest.fixture(scope="module")
def answers(engine: EngineCore, prompts: dict[str, list[int]]) -> dict[str, list[int]]:
    """What fp32 answers, all prompts together."""
    return run(engine, [request(name, ids, GREEDY) for name, ids in prompts.items()])


PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}


def weights_of(files: ModelFiles) -> dict[str, Tensor]:
    """The file as the gguf package reads it, under transformers' names, whose norms hold w of 1 + w."""
    found = {}
    for tensor in gguf.GGUFReader(files.weights[0]).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
        assert match is not None
        layer, part = match.groups()
        name = f"{PARTS[part]}.weight" if layer is None else f"model.layers.{layer}.{PARTS[part]}.weight"
        found[name] = values - 1 if "norm" in part else values
    return found


def test_greedy_tokens_are_transformers(
    files: ModelFiles, prompts: dict[str, list[int]], answers: dict[str, list[int]]
) -> None:
    """Each of its own choices behind ours, which are the same if and only if it would have generated them."""
    config = Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        vocab_size=262_144,
        sliding_window=512,
    )
    reference = Gemma3ForCausalLM(config).eval()
    missing = reference.load_state_dict(weights_of(files), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["lm_head.weight"], [])
    for name, ids in prompts.items():
        assert len(answers[name]) == NUM_TOKENS
        with torch.no_grad():
            sequence = torch.tensor([ids + answers[name][:-1]])
            logits = reference(sequence, use_cache=False, logits_to_keep=NUM_TOKENS).logits[0]
        assert logits.argmax(-1).tolist() == answers[name], name


def test_the_table_says_that_trained_weights_are_tested(files: ModelFiles) -> None:
    (name,) = files.config["architectures"]
    assert find(name).tested == "trained"


def test_token_ids_are_transformers(files: ModelFiles, tmp_path: Path) -> None:
    """As it makes the tokenizer of the file alone."""
    (tmp_path / "m.gguf").symlink_to(files.weights[0])
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf").backend_tokenizer
    ours = tokenizers.Tokenizer.from_file(str(files.tokenizer_file))
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == reference.encode(text).ids, text
        assert ours.decode(ids, skip_special_tokens=False) in ("<bos>" + text, text), text


def test_ten_turns_hit_all_but_what_is_new(engine: EngineCore, prompts: dict[str, list[int]]) -> None:
    """Past the window too, of which most layers keep no more."""
    conversation = prompts["long"][:400]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    hits, asked = [], []
    for turn in range(10):
        before = engine.stats().prefix_hit_tokens_total
        name = f"turn {turn}"
        (answer,) = run(engine, [request(name, conversation, params, cache_salt="turns")]).values()
        hits.append(engine.stats().prefix_hit_tokens_total - before)
        asked.append(len(conversation))
        conversation = conversation + answer + prompts["story"][1:20]
    assert asked[-1] > 512 + 2 * 16
    assert sum(hits[1:]) > 0.9 * sum(asked[1:])


@pytest.fixture(scope="module")
def server(files: ModelFiles) -> Iterator[Server]:
    """As a user starts it."""
    with start_server("--model", NAME) as running:
        yield running


def test_the_default_format_served(
    server: Server, files: ModelFiles, prompts: dict[str, list[int]], answers: dict[str, list[int]]
) -> None:
    """Counted over all tokens, each behind what fp32 chose: a single near tie would send a whole answer elsewhere."""
    tokenizer = tokenizers.Tokenizer.from_file(str(files.tokenizer_file))
    text = "naïve café 😀\n\n  中文"
    same = 0
    with httpx.Client(base_url=server.url, timeout=120.0) as client:
        for name, ids in prompts.items():
            body = {"model": NAME, "prompt": ids + answers[name], "max_tokens": 0, "echo": True, "logprobs": 1}
            (choice,) = client.post("/v1/completions", json=body).raise_for_status().json()["choices"]
            chosen, likeliest = (choice["logprobs"][key][-NUM_TOKENS:] for key in ("token_logprobs", "top_logprobs"))
            same += sum(mine == max(best.values()) for mine, best in zip(chosen, likeliest, strict=True))
        found = client.post("/tokenize", json={"model": NAME, "prompt": text}).raise_for_status().json()
    assert found["tokens"] == tokenizer.encode(text).ids
    assert same > 0.85 * NUM_TOKENS * len(prompts), "int8 chooses as fp32 does"
