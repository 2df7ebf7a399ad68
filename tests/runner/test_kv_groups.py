"""Transformers' tokens, however they are scheduled, of models with windows too, whose past is given back."""

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
from app.models.architectures import parse_config
from app.models.config import ModelConfig
from app.runner.errors import RunnerError
from app.runner.kv_plan import Sizes, kv_groups, plan_kv_cache
from app.runner.start import make_runner
from tests.models.scheduled import greedy
from tests.models.tiny import CONTEXT, make_reference, save
from tests.runner.driver import discard, engine_config

BLOCK = 16
WINDOW = 24
MODELS: dict[str, tuple[str, dict[str, Any], list[tuple[str, tuple[int, ...]]]]] = {
    "all slide": ("mistral", {}, [("sliding", (0, 1, 2))]),
    "some slide": ("qwen2_sliding", {}, [("full", (0,)), ("sliding", (1, 2))]),
    "Gemma 3": ("gemma3", {}, [("sliding", (0, 2)), ("full", (1, 3))]),
    "shared pages, heads of two widths": ("gemma4", {}, [("sliding", (0, 1)), ("full", (2,))]),
    "heads of 16": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        [("full", (0, 1)), ("sliding", (2,))],
    ),
    "experts": ("qwen3moe", {}, [("full", (0, 1, 2))]),
    "some experts, all slide": ("qwen3moe_mixed", {}, [("sliding", (0, 1, 2, 3, 4))]),
    "learned positions": ("gpt2", {}, [("full", (0, 1, 2))]),
}
torch.manual_seed(5)
PREFIX = torch.randint(128, (100,)).tolist()
PROMPTS = {
    f"{shared}+{own}": PREFIX[:shared] + torch.randint(128, (own,)).tolist()
    for shared, own in ((100, 60), (100, 7), (0, 1), (40, 30))
}
NUM_TOKENS = 40


@pytest.fixture(autouse=True)
def modes() -> Iterator[None]:
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)


class Loaded:
    """A checkpoint, and what transformers makes of it."""

    def __init__(self, name: str, directory: Path) -> None:
        variant, overrides, self.groups = MODELS[name]
        reference = make_reference(variant, **overrides)
        self.directory = save(reference, directory)
        drafts = answers(self.engine(), PROMPTS)
        self.expected = {key: greedy(reference, prompt, NUM_TOKENS, drafts[key]) for key, prompt in PROMPTS.items()}

    def engine(self, **changes: Any) -> EngineCore:
        config = engine_config(self.directory, integrity_checks=True, max_num_batched_tokens=48, **changes)
        return EngineCore(make_runner(config, discard), config)


@pytest.fixture(scope="module", params=sorted(MODELS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp("model"))


def request_of(name: str, prompt: list[int], **fields: Any) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    return GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=params, seed=0, **fields)


def answers(engine: EngineCore, prompts: dict[str, list[int]], **fields: Any) -> dict[str, list[int]]:
    for name, prompt in prompts.items():
        engine.add_request(request_of(name, prompt, **fields))
    tokens: dict[str, list[int]] = {name: [] for name in prompts}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.new_token_ids
        engine.check_integrity()
    return tokens


def test_layers_form_groups(loaded: Loaded) -> None:
    runner = make_runner(engine_config(loaded.directory), discard)
    groups = runner.info.kv_cache.groups
    assert [(group.kind, group.layers) for group in groups] == loaded.groups
    assert all(group.window == (WINDOW if group.kind == "sliding" else None) for group in groups)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_batch_in_chunks_gives_transformers_tokens(loaded: Loaded, depth: int) -> None:
    assert answers(loaded.engine(pipeline_depth=depth), PROMPTS) == loaded.expected


def test_on_a_prefix_that_is_there(loaded: Loaded) -> None:
    engine = loaded.engine()
    for name, prompt in PROMPTS.items():
        assert answers(engine, {name: prompt}) == {name: loaded.expected[name]}
    assert engine.stats().prefix_hit_tokens_total == 96 + 32
    assert answers(engine, PROMPTS) == loaded.expected, "all are there now"


def test_blocks_are_reused_while_their_sequence_runs(loaded: Loaded) -> None:
    """The pools of windows hold less than a sequence."""
    counts = tuple(6 if kind == "sliding" else 14 for kind, _ in loaded.groups)
    engine = loaded.engine(num_blocks=counts)
    for name, prompt in PROMPTS.items():
        assert answers(engine, {name: prompt}) == {name: loaded.expected[name]}


def test_preempted_and_resumed(loaded: Loaded) -> None:
    counts = tuple(8 if kind == "sliding" else 16 for kind, _ in loaded.groups)
    engine = loaded.engine(num_blocks=counts)
    assert answers(engine, PROMPTS) == loaded.expected
    assert engine.stats().preemptions_total > 0


def test_turns_of_a_conversation_hit_all_but_what_is_new(tmp_path: Path) -> None:
    """Far behind the window too, of which half of the layers keep no more."""
    directory = save(make_reference("gemma3", max_position_embeddings=1024), tmp_path)
    config = engine_config(directory, integrity_checks=True, max_num_batched_tokens=48, num_blocks=(16, 64))
    engine = EngineCore(make_runner(config, discard), config)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    conversation, hits, asked = [PREFIX[i % 100] for i in range(400)], [], []
    for turn in range(10):
        before = engine.stats().prefix_hit_tokens_total
        engine.add_request(msgspec.structs.replace(request_of(str(turn), conversation), sampling=params))
        asked.append(len(conversation))
        while engine.has_work:
            for output in engine.step():
                conversation = conversation + output.new_token_ids
        hits.append(engine.stats().prefix_hit_tokens_total - before)
        conversation = [*conversation, 1, 2, 3, turn]
        engine.check_integrity()
    assert asked[-1] == 580
    assert sum(hits[1:]) > 0.9 * sum(asked[1:])


@pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels here")
def test_recorded_steps_over_packed_pages(tmp_path: Path) -> None:
    loaded = Loaded("heads of 16", tmp_path)
    formats = {"dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "kernels": "strict"}
    roomy = answers(loaded.engine(enable_prefix_caching=False, **formats), PROMPTS)
    engine = loaded.engine(num_blocks=(16, 14), **formats)
    for name, prompt in PROMPTS.items():
        for _ in range(2):
            assert answers(engine, {name: prompt}) == {name: roomy[name]}
    assert engine.stats().prefix_hit_tokens_total > 0


# -- sizes ------------------------------------------------------------------------------------------------------

GEMMA = parse_config(
    {
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    }
)
"""The shape of a Gemma 3: five layers with a window to one without."""
LAYER_BLOCK = 2 * 256 * BLOCK * 4


def with_layers(*attentions: tuple[int | None, int]) -> ModelConfig:
    """That shape with other layers: the window and the key/value heads of each."""
    first = GEMMA.layers[0]
    layers = tuple(
        msgspec.structs.replace(
            first, mixer=msgspec.structs.replace(GEMMA.attentions[0], window=window, num_kv_heads=heads)
        )
        for window, heads in attentions
    )
    return msgspec.structs.replace(GEMMA, layers=layers)


def config_of(**changes: Any) -> EngineConfig:
    return EngineConfig(model_dir="none", **changes)


def test_layers_of_one_window_share_a_group() -> None:
    groups = kv_groups(GEMMA, config_of())
    assert [(group.kind, group.window, group.num_layers) for group in groups] == [
        ("sliding", 1024, 20),
        ("full", None, 4),
    ]
    assert [group.bytes_per_block for group in groups] == [20 * LAYER_BLOCK, 4 * LAYER_BLOCK]
    two = with_layers(*((window, 1) for window in (None, 512, 1024, 512, 1 << 20)))
    assert [(group.window, group.layers) for group in kv_groups(two, config_of())] == [
        (None, (0, 4)),
        (512, (1, 3)),
        (1024, (2,)),
    ]


def test_layers_whose_pages_differ_in_size_have_groups_of_their_own() -> None:
    groups = kv_groups(with_layers((None, 1), (None, 2), (512, 2), (None, 1)), config_of())
    assert [(group.window, group.num_kv_heads, group.layers) for group in groups] == [
        (None, 1, (0, 3)),
        (None, 2, (1,)),
        (512, 2, (2,)),
    ]
    assert [group.bytes_per_block for group in groups] == [2 * LAYER_BLOCK, 2 * LAYER_BLOCK, 2 * LAYER_BLOCK]


def test_a_long_sequence_takes_a_quarter_of_what_full_attention_would() -> None:
    sizes = Sizes(GEMMA, config_of())
    assert sizes.nbytes(sizes.least(32768, chunk=1024)) <= 0.25 * 24 * LAYER_BLOCK * 2048


@pytest.mark.parametrize("asked", [None, 1000, 8192, 65536, 131072])
@pytest.mark.parametrize("memory", [2 << 30, 3 << 30, 40 << 30])
def test_the_budget_is_split_and_each_group_holds_a_sequence_alone(asked: int | None, memory: int) -> None:
    config = config_of(max_model_len=asked, kv_cache_memory=memory)
    plan = plan_kv_cache(GEMMA, config)
    assert memory - 24 * LAYER_BLOCK < plan.nbytes <= memory
    assert plan.max_model_len == (asked or min(131072, plan.num_blocks[1] * BLOCK))
    for group in plan.spec.groups:
        assert group.num_blocks >= group.most_blocks(plan.max_model_len, BLOCK, chunk=1024)
    sliding, full = plan.num_blocks
    typical = min(asked or 131072, 8192)
    if memory == 40 << 30:
        window = min(2 * plan.spec.groups[0].most_blocks(typical, BLOCK, chunk=BLOCK), -(-typical // BLOCK))
        assert sliding / full == pytest.approx(window / -(-typical // BLOCK), rel=0.01)


def test_a_budget_that_only_just_holds_one_sequence() -> None:
    sizes = Sizes(GEMMA, config_of(max_model_len=20000))
    needed = sizes.nbytes(sizes.least())
    assert sizes.longest(needed) == 20000
    plan = plan_kv_cache(GEMMA, config_of(max_model_len=20000, kv_cache_memory=needed))
    assert plan.num_blocks == sizes.least()
    with pytest.raises(RunnerError, match=rf"kv_cache_memory = {needed - 1} .*need 66 \+ 1250 blocks.*{needed} bytes"):
        plan_kv_cache(GEMMA, config_of(max_model_len=20000, kv_cache_memory=needed - 1))


@pytest.mark.parametrize("length", [200, 1500, 8000])
def test_a_small_budget_is_for_the_longest_sequence_that_it_holds(length: int) -> None:
    sizes = Sizes(GEMMA, config_of())
    plan = plan_kv_cache(GEMMA, config_of(kv_cache_memory=sizes.nbytes(sizes.least(length))))
    assert plan.max_model_len == -(-length // BLOCK) * BLOCK


def test_exact_numbers_of_blocks() -> None:
    assert plan_kv_cache(GEMMA, config_of(num_blocks=100)).num_blocks == (100, 100)
    plan = plan_kv_cache(GEMMA, config_of(num_blocks=(70, 200)))
    assert (plan.num_blocks, plan.max_model_len, plan.num_sequences) == ((70, 200), 3200, 1)
    assert plan_kv_cache(GEMMA, config_of(num_blocks=(10, 200))).max_model_len == 160
    with pytest.raises(RunnerError, match="not of the model's 2 groups"):
        plan_kv_cache(GEMMA, config_of(num_blocks=(1, 2, 3)))
    with pytest.raises(RunnerError, match=r"num_blocks = \(65, 2000\) is too small.*66 \+ 1250 blocks"):
        plan_kv_cache(GEMMA, config_of(num_blocks=(65, 2000), max_model_len=20000))


def test_windows_no_shorter_than_the_context_hide_nothing() -> None:
    whole = msgspec.structs.replace(with_layers(*[(CONTEXT, 1)] * 24), context_length=CONTEXT)
    (group,) = kv_groups(whole, config_of())
    assert (group.kind, group.window, group.num_layers) == ("full", None, 24)
