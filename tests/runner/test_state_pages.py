"""Layers of recurrent state beside attention: the same tokens, however rows are cut, batched, cached or preempted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from app.contract.config import EngineConfig
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.layers.delta import GatedDelta
from app.models.config import AttentionConfig, DeltaConfig, LayerConfig, MlpConfig, ModelConfig, Rope
from app.models.decoder import DecoderLayer, DecoderStack
from app.models.names import DecoderNames
from app.models.parts import Parts
from app.runner.formats import choose_formats
from app.runner.kv_plan import kv_groups, plan_kv_cache
from app.runner.model_runner import ModelRunner
from tests.kernels.delta import native_isas
from tests.runner.driver import engine_config

CPU = torch.device("cpu")
D, V, BLOCK = 32, 96, 16
DELTA = DeltaConfig(num_k_heads=2, num_v_heads=4, k_dim=16, v_dim=16, conv_width=4)
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, rope=Rope(theta=100.0, width=16))
MIXERS = (DELTA, ATTENTION, DELTA)
CONFIG = ModelConfig(
    architecture="MadeUp",
    vocab_size=V,
    hidden_size=D,
    norm_eps=1e-5,
    layers=tuple(LayerConfig(mixer, MlpConfig(width=48)) for mixer in MIXERS),
    context_length=256,
    tie_word_embeddings=False,
)
FORMATS: dict[str, dict[str, Any]] = {
    "reference": {"kernels": "reference"},
    "bfloat16": {"kernels": "strict", "dtype": "bfloat16"},
    "int8": {"kernels": "strict", "dtype": "float32", "quantization": "int8"},
    "interpreted": {"kernels": "interpret"},
}
torch.manual_seed(3)
PREFIX = torch.randint(V, (100,)).tolist()
PROMPTS = {
    f"{shared}+{own}": PREFIX[:shared] + torch.randint(V, (own,)).tolist()
    for shared, own in ((64, 20), (64, 7), (0, 1), (40, 30))
}


def make_runner(config: EngineConfig) -> ModelRunner:
    dispatch.configure(dispatch.Mode(config.kernels), threads=2)
    backend = choose_backend(CPU)
    config, placement = choose_formats(config, backend, CONFIG)
    parts = Parts(CONFIG, max_positions=CONFIG.context_length, placement=placement)
    layers = [
        DecoderLayer(
            mixer_norm=parts.rms_norm(),
            mixer=GatedDelta(D, layer.mixer, 1e-5, interleaved=True, placement=parts.placement)
            if isinstance(layer.mixer, DeltaConfig)
            else parts.attention(layer.mixer),
            mlp_norm=parts.rms_norm(),
            mlp=parts.mlp(layer.mlp),
        )
        for layer in CONFIG.layers
    ]
    model = DecoderStack(parts, DecoderNames(), layers, final_norm=parts.rms_norm())
    random = torch.Generator().manual_seed(1)
    for destination in model.destinations().values():
        weight = torch.randn(tuple(destination.shape), generator=random) * 0.3
        destination.copy_(1 + weight if weight.dim() == 1 else weight)
    return ModelRunner(model, CONFIG, plan_kv_cache(CONFIG, config), config, backend)


@pytest.fixture(autouse=True)
def modes() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if name == "interpreted" else []) for name in FORMATS]
)
def formats(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "interpreted":
        pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    elif request.param != "reference" and not native_isas():
        pytest.skip("no native kernels here")
    return FORMATS[request.param]


def engine_of(directory: Path, **changes: Any) -> EngineCore:
    config = engine_config(directory, **{"integrity_checks": True, **changes})
    return EngineCore(make_runner(config), config)


def answers(engine: EngineCore, prompts: dict[str, list[int]], num_tokens: int) -> dict[str, list[int]]:
    for name, prompt in prompts.items():
        sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        engine.add_request(GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, seed=0))
    tokens: dict[str, list[int]] = {name: [] for name in prompts}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.new_token_ids
        engine.check_integrity()
    return tokens


def test_tokens_do_not_hang_on_the_schedule(tmp_path: Path, formats: dict[str, Any]) -> None:
    interpreted = formats["kernels"] == "interpret"
    prompts, chunk, count = ({"18": PREFIX[:18]}, 11, 2) if interpreted else (PROMPTS, 48, 40)
    plain = engine_of(tmp_path, enable_prefix_caching=False, max_num_batched_tokens=128, enforce_eager=True, **formats)
    expected = {name: answers(plain, {name: prompt}, count)[name] for name, prompt in prompts.items()}
    assert len({tuple(tokens) for tokens in expected.values()}) == len(prompts)
    engine = engine_of(tmp_path, max_num_batched_tokens=chunk, **formats)
    assert answers(engine, prompts, count) == expected, "side by side, in chunks"
    for name, prompt in prompts.items():
        assert answers(engine, {name: prompt}, count)[name] == expected[name], "behind a prefix that is there"
    assert engine.stats().prefix_hit_tokens_total > 0


@pytest.mark.parametrize("blocks", [(5, 12), (8, 10)])
def test_preempted_and_resumed(tmp_path: Path, blocks: tuple[int, int]) -> None:
    formats = FORMATS["reference"]
    plain = engine_of(tmp_path, enable_prefix_caching=False, **formats)
    expected = {name: answers(plain, {name: prompt}, 40)[name] for name, prompt in PROMPTS.items()}
    engine = engine_of(tmp_path, num_blocks=blocks, max_num_batched_tokens=48, **formats)
    assert answers(engine, PROMPTS, 40) == expected
    assert engine.stats().preemptions_total > 0


def test_layers_of_state_form_a_group_of_their_own() -> None:
    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        config = EngineConfig(model_dir="none", dtype=dtype, kv_cache_dtype="bfloat16")
        state, full = kv_groups(CONFIG, config)
        assert (state.kind, state.layers, state.dtype) == ("state", (0, 2), dtype)
        assert (full.kind, full.layers, full.dtype) == ("full", (1,), "bfloat16")
        assert state.bytes_per_block == 2 * (3 * (2 * 2 * 16 + 4 * 16) * itemsize + 4 * 16 * 16 * 4)
    (state, _) = kv_groups(CONFIG, msgspec.structs.replace(config, tensor_parallel_size=2))
    assert state.bytes_per_block == 2 * (3 * 64 * 2 + 2 * 16 * 16 * 4), "of one rank"


@pytest.mark.parametrize("asked", [None, 200])
def test_the_budget_leaves_room_for_states(asked: int | None) -> None:
    config = EngineConfig(model_dir="none", max_model_len=asked, kv_cache_memory=4 << 20)
    plan = plan_kv_cache(CONFIG, config)
    state, full = plan.num_blocks
    assert (4 << 20) - sum(group.bytes_per_block for group in plan.spec.groups) < plan.nbytes <= 4 << 20
    assert plan.max_model_len == (asked or 256)
    assert state / full == pytest.approx(6 / -(-(asked or 256) // BLOCK), rel=0.1)
    assert plan.num_tokens == full * BLOCK
    assert plan.num_sequences == min(state // 3, full * BLOCK // plan.max_model_len)
