"""Tiers of the prefix cache under real models of each kind of pages: a restart finds the text, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.contract.config import AdapterSource
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.kernels import dispatch
from tests.models.adapter_files import write_adapter
from tests.models.scheduled import TOKENS, answers, engine_of
from tests.models.tiny import make_reference, save

BLOCK = 16
NUM_TOKENS = 16
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "keys and values": ("llama", {}),
    "int8, with scales": ("llama", {"kv_cache_dtype": "int8"}),
    "bfloat16": ("llama", {"kv_cache_dtype": "bfloat16"}),
    "windows": ("gemma3", {}),
    "states": ("qwen3_next", {}),
    "states of a scan": ("falcon_h1", {}),
    "latents": ("deepseek_v2", {}),
    "native": ("llama", {"kernels": "auto", "dtype": "auto", "quantization": "auto"}),
}


@pytest.fixture(autouse=True)
def modes() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_restart_goes_on_with_a_conversation(name: str, tmp_path: Path) -> None:
    variant, options = VARIANTS[name]
    reference = make_reference(variant)
    checkpoint = save(reference, tmp_path / "model")
    kept = {**options, "prefix_cache_dir": str(tmp_path / "blocks")}
    said = TOKENS[:70]
    engine = engine_of(checkpoint, **kept)
    for turn in range(2):
        said = [*said, *answers(engine, [said], NUM_TOKENS)[0], *TOKENS[100 + turn : 109 + turn]]
    engine.close(20)
    again = engine_of(checkpoint, **kept)
    restored = answers(again, [said], NUM_TOKENS)
    assert restored == answers(engine_of(checkpoint, **options), [said], NUM_TOKENS)
    assert again.stats().prefix_hit_tokens_total >= len(said) - 9 - 1 - BLOCK
    assert again.stats().prefix_tiers[0].damaged_total == 0
    assert again.stats().prefix_tiers[0].hit_tokens_total == again.stats().prefix_hit_tokens_total


@pytest.mark.parametrize("variant", ["gemma3", "qwen3_next"])
def test_more_conversations_than_the_pool_holds(variant: str, tmp_path: Path) -> None:
    checkpoint = save(make_reference(variant), tmp_path / "model")
    said = [[index, *TOKENS[index : index + 59]] for index in range(6)]
    small = {"num_blocks": 12, "max_model_len": 160, "max_num_seqs": 2}
    engine = engine_of(checkpoint, **small, prefix_cache_ram=64 << 20)
    first = [answers(engine, [tokens], NUM_TOKENS)[0] for tokens in said]
    before = engine.stats().prefix_hit_tokens_total
    again = [answers(engine, [tokens], NUM_TOKENS)[0] for tokens in said]
    plain = engine_of(checkpoint, enable_prefix_caching=False)
    assert again == first == [answers(plain, [tokens], NUM_TOKENS)[0] for tokens in said]
    assert engine.stats().prefix_hit_tokens_total - before >= 6 * 2 * BLOCK


def adapted(checkpoint: Path, directory: Path, *adapters: Path) -> EngineCore:
    return engine_of(
        checkpoint,
        adapters=tuple(AdapterSource(path.name, str(path)) for path in adapters),
        max_adapters=len(adapters),
        prefix_cache_dir=str(directory),
    )


def hit_of(engine: EngineCore, adapter: str) -> int:
    """Tokens that a prompt finds with an adapter."""
    before = engine.stats().prefix_hit_tokens_total
    sampling = SamplingParams(temperature=0.0, max_tokens=2)
    engine.add_request(
        GenerateRequest(
            request_id=adapter or "none", prompt_token_ids=TOKENS[:70], sampling=sampling, seed=0, adapter=adapter
        )
    )
    while engine.has_work:
        engine.step()
    return engine.stats().prefix_hit_tokens_total - before


def test_adapters_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    reference = make_reference("llama")
    checkpoint, blocks = save(reference, tmp_path / "model"), tmp_path / "blocks"
    one, two = (write_adapter(tmp_path / name, reference, seed=seed) for name, seed in (("one", 1), ("two", 2)))
    engine = adapted(checkpoint, blocks, one, two)
    assert [hit_of(engine, adapter) for adapter in ("one", "two", "")] == [0, 0, 0]
    engine.close(20)
    assert hit_of(adapted(checkpoint, blocks, one.rename(tmp_path / "moved")), "moved") == 64
    changed = adapted(checkpoint, blocks, write_adapter(two, reference, seed=3))
    assert [hit_of(changed, adapter) for adapter in ("two", "")] == [0, 64]
