"""Adapters beside models of several forms: their tokens are those of weights that they were merged into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.checkpoints.adapter import AdapterError
from app.contract.config import AdapterSource
from app.contract.request import GenerateRequest, SamplingParams
from app.engine.core import EngineCore
from app.kernels import dispatch
from app.runner.adapters import adapter_limits
from app.runner.errors import RunnerError
from app.runner.model_runner import ModelRunner
from app.runner.parallel import start_runner
from tests.engine.harness import wait_until
from tests.integration.test_replay import Ran
from tests.models.adapter_files import ATTENTION, merged, write_adapter
from tests.models.checkpoints import expected_logprobs, served_logprobs
from tests.models.scheduled import TOKENS, greedy
from tests.models.served import SMALL_STEPS, native
from tests.models.test_dispatch_contract import row, strays_of
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, engine_config, run, runner_of
from tests.runner.steps import slot_of, step_of

VARIANTS = ["llama", "phi3", "gpt2", "cohere", "gemma3", "granite"]
"""Projections of their own, fused ones, transposed ones, pairs apart, norms behind, factors on weights."""
NUM_TOKENS = 12
PROMPT = TOKENS[:40]


def sources(*directories: Path) -> tuple[AdapterSource, ...]:
    return tuple(AdapterSource(directory.name, str(directory)) for directory in directories)


def engine_with(directory: Path, *adapters: Path, **options: Any) -> EngineCore:
    options = {
        "kernels": "reference",
        "integrity_checks": True,
        "adapters": sources(*adapters),
        "max_adapters": len(adapters),
        **options,
    }
    return EngineCore(runner_of(directory, **options), engine_config(directory, **options))


def tokens_of(
    engine: EngineCore, asked: Sequence[tuple[str, list[int]]], num_tokens: int = NUM_TOKENS
) -> list[list[int]]:
    """Greedy tokens of (adapter, prompt), asked at once."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for index, (adapter, prompt) in enumerate(asked):
        engine.add_request(
            GenerateRequest(request_id=str(index), prompt_token_ids=prompt, sampling=sampling, seed=0, adapter=adapter)
        )
    tokens: list[list[int]] = [[] for _ in asked]
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            tokens[int(output.request_id)] += output.new_token_ids
        engine.check_integrity()
    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_row_has_the_tokens_of_its_merged_weights(tmp_path: Path, variant: str) -> None:
    base = make_reference(variant)
    directory = save(base, tmp_path / "base")
    whole = write_adapter(tmp_path / "whole", base, seed=1, rank=4)
    part = write_adapter(tmp_path / "part", base, seed=2, rank=3, modules=ATTENTION, config={"use_rslora": True})
    expected = {
        "": greedy(base, PROMPT, NUM_TOKENS),
        "whole": greedy(merged(make_reference(variant), whole), PROMPT, NUM_TOKENS),
        "part": greedy(merged(make_reference(variant), part), PROMPT, NUM_TOKENS),
    }
    assert len({tuple(tokens) for tokens in expected.values()}) == 3, "the adapters change what is said"
    asked = ["whole", "", "part", "whole"]
    engine = engine_with(directory, whole, part, max_num_batched_tokens=50, max_model_len=64)
    for when in ("cold", "behind prefixes"):
        computed = tokens_of(engine, [(name, PROMPT) for name in asked])
        assert computed == [expected[name] for name in asked], when


def test_patterns_say_rank_and_scale_of_some_modules(tmp_path: Path) -> None:
    base = make_reference("llama")
    adapter = write_adapter(
        tmp_path / "a",
        base,
        rank=4,
        ranks={"q_proj": 2, r"layers\.1\.mlp\.(up|down)_proj": 8},
        alphas={"self_attn.v_proj": 1.0},
    )
    engine = engine_with(save(base, tmp_path / "base"), adapter)
    assert tokens_of(engine, [("a", PROMPT)]) == [greedy(merged(make_reference("llama"), adapter), PROMPT, NUM_TOKENS)]


def test_an_adapter_comes_while_others_run(tmp_path: Path) -> None:
    base = make_reference("llama")
    adapter = write_adapter(tmp_path / "a", base)
    engine = engine_with(save(base, tmp_path / "base"), max_adapters=1)
    sampling = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine.add_request(GenerateRequest(request_id="base", prompt_token_ids=PROMPT, sampling=sampling, seed=0))
    engine.adapters.load("a", str(adapter))
    tokens: list[int] = []
    while engine.has_work:
        tokens += [token for output in engine.step() for token in output.new_token_ids]
    assert tokens == greedy(base, PROMPT, 20)
    wait_until(lambda: engine.adapters.has_outcomes)
    assert [outcome.error for outcome in engine.adapters.take_outcomes()] == [None]
    expected = greedy(merged(make_reference("llama"), adapter), PROMPT, NUM_TOKENS)
    assert tokens_of(engine, [("a", PROMPT)]) == [expected]


def test_a_slot_has_nothing_of_the_adapter_before(tmp_path: Path) -> None:
    base = make_reference("llama")
    whole = write_adapter(tmp_path / "whole", base, rank=8)
    part = write_adapter(tmp_path / "part", base, rank=2, modules="q_proj", seed=3)
    runner = runner_of(save(base, tmp_path / "base"), kernels="reference", max_adapters=1)
    runner.load_adapter(0, str(whole))
    runner.load_adapter(0, str(part))
    request = Request(0, PROMPT, list(range(8)), adapter=0)
    run(runner, [request], NUM_TOKENS)
    assert request.outputs == greedy(merged(make_reference("llama"), part), PROMPT, NUM_TOKENS)


@native
def test_an_int8_step_with_adapters_is_one_native_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_reference("qwen3")
    adapter = write_adapter(tmp_path / "a", base, rank=8, size=0.3)
    directory = save(base, tmp_path / "base")
    ran = Ran(monkeypatch)
    runner = runner_of(directory, kernels="strict", threads=2, quantization="int8", max_adapters=2)
    runner.load_adapter(1, str(adapter))
    ran.take()
    mixed = [Request(0, PROMPT, [0, 1, 2, 3], adapter=1), Request(1, PROMPT[:9], [5]), Request(2, [3], [6], adapter=1)]
    run(runner, mixed, 6)
    programs = ran.take()
    assert len(programs) == 6, "one call a step"
    assert all("lora" in names for names in programs)
    base_alone = [Request(1, PROMPT[:9], [9])]
    run(runner_of(directory, kernels="strict", threads=2, quantization="int8"), base_alone, 6)
    assert mixed[1].outputs == base_alone[0].outputs, "a row without an adapter is as it was"
    assert not any("lora" in names for names in ran.take()), "who serves none has nothing of them"
    dispatch.configure(dispatch.Mode.AUTO, 1)


@native
@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_native_numbers_are_near_those_of_merged_weights(tmp_path: Path, quantization: str) -> None:
    base = make_reference("qwen3")
    adapter = write_adapter(tmp_path / "a", base, rank=8, size=0.3)
    directory = save(base, tmp_path / "base")
    whole = save(merged(make_reference("qwen3"), adapter), tmp_path / "merged")
    options = {
        "kernels": "strict",
        "quantization": quantization,
        "dtype": "auto" if quantization == "int8" else "bfloat16",
    }
    runner = runner_of(directory, max_adapters=1, **options)
    runner.load_adapter(0, str(adapter))
    served, expected = served_logprobs(runner, adapter=0), expected_logprobs(whole)
    assert ((served - expected).square().mean() / expected.var()).item() < 0.02
    dispatch.configure(dispatch.Mode.AUTO, 1)


def test_steps_with_adapters_compute_in_kernels_alone(tmp_path: Path) -> None:
    base = make_reference("qwen3")
    runner = runner_of(save(base, tmp_path / "base"), max_adapters=1)
    runner.load_adapter(0, str(write_adapter(tmp_path / "a", base)))
    prompt = list(range(40))
    first = step_of([row(runner, 0, 0, prompt, blocks=range(3))], [slot_of(0, prompt, adapter=0)])
    assert strays_of(lambda: runner.submit(first)) == set()


@pytest.mark.slow
def test_interpreted_triton_gives_the_tokens_of_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    base = make_reference("qwen3", num_hidden_layers=1)
    adapter = write_adapter(tmp_path / "a", base)
    directory = save(base, tmp_path / "base")
    runner = runner_of(directory, kernels="interpret", quantization="int8", max_adapters=1, **SMALL_STEPS)
    runner.load_adapter(0, str(adapter))
    computed, expected = ([Request(0, [7], [0], adapter=0), Request(1, PROMPT[:4], [5])] for _ in range(2))
    run(runner, computed, 2)
    dispatch.configure(dispatch.Mode.REFERENCE, threads=1)
    runner.run_eagerly()
    run(runner, expected, 2)
    assert [request.outputs for request in computed] == [request.outputs for request in expected]
    dispatch.configure(dispatch.Mode.AUTO, 1)


def drop_up(tensors: dict[str, Tensor]) -> None:
    del tensors[next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))]


def renamed(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    for part in ("A", "B"):
        own = name.replace("lora_A", f"lora_{part}")
        tensors[own.replace("q_proj", "z_proj")] = tensors.pop(own)


def narrowed(tensors: dict[str, Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()


def with_tensor(name: str) -> Callable[[dict[str, Tensor]], None]:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors[f"base_model.model.{name}"] = torch.zeros(4, 4)

    return add


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"config": {"use_dora": True}}, ["use_dora", "DoRA"]),
        ({"config": {"bias": "all"}}, ["bias"]),
        ({"config": {"modules_to_save": ["lm_head"]}}, ["modules_to_save"]),
        ({"config": {"peft_type": "IA3"}}, ["peft_type", "IA3"]),
        ({"config": {"init_lora_weights": "pissa"}}, ["init_lora_weights"]),
        ({"config": {"target_parameters": ["experts.down_proj"]}}, ["target_parameters"]),
        ({"config": {"r": "four"}}, ["$.r"]),
        ({"config": {"r": 5}}, ["rank 4", "says 5"]),
        ({"config": {"rank_pattern": {"(a+)+": 2}}}, ["rank_pattern", "too involved"]),
        ({"config": {"alpha_pattern": {"[": 2}}}, ["alpha_pattern", "no pattern"]),
        ({"rank": 32}, ["rank is 32", "--max-adapter-rank"]),
        ({"tensors": drop_up}, ["q_proj", "lora_B"]),
        ({"tensors": renamed}, ["z_proj", "no module"]),
        ({"tensors": narrowed}, ["q_proj", "the model's is"]),
        ({"tensors": with_tensor("model.embed_tokens.lora_embedding_A")}, ["lora_embedding_A", "embeddings"]),
        ({"tensors": with_tensor("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight")}, ["DoRA"]),
        ({"tensors": with_tensor("model.layers.0.mlp.bias")}, ["mlp.bias", "no matrix"]),
        ({"modules": "nothing"}, ["no matrix"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(
    refusing: tuple[Any, ModelRunner], changes: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    base, runner = refusing
    adapter = write_adapter(tmp_path / "a", base, **changes)
    with pytest.raises(AdapterError) as error:
        runner.load_adapter(0, str(adapter))
    assert all(name in str(error.value) for name in names), error.value
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ModelRunner]:
    """A model, and a runner of it that has room for adapters of rank 16."""
    base = make_reference("llama")
    directory = save(base, tmp_path_factory.mktemp("base"))
    return base, runner_of(directory, kernels="reference", max_adapters=1)


def test_files_that_are_not_there_or_broken_are_told(refusing: tuple[Any, ModelRunner], tmp_path: Path) -> None:
    base, runner = refusing
    with pytest.raises(AdapterError, match=r"adapter_config\.json: No such file"):
        runner.load_adapter(0, str(tmp_path / "nowhere"))
    adapter = write_adapter(tmp_path / "a", base)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(AdapterError, match="truncated"):
        runner.load_adapter(0, str(adapter))
    weights.unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        runner.load_adapter(0, str(adapter))
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="not a JSON object"):
        runner.load_adapter(0, str(adapter))


def test_who_cannot_serve_adapters_says_so(tmp_path: Path) -> None:
    directory = save(make_reference("llama"), tmp_path / "base")
    with pytest.raises(RunnerError, match="several ranks cannot serve adapters"):
        adapter_limits(engine_config(directory, max_adapters=1, tensor_parallel_size=2))
    with pytest.raises(RunnerError, match="via transformers cannot serve adapters"):
        runner_via_transformers(directory)


def runner_via_transformers(directory: Path) -> None:
    start_runner(engine_config(directory, via="transformers", max_adapters=1), discard)


def test_the_greatest_rank_follows_from_the_adapters_of_the_start(tmp_path: Path) -> None:
    base = make_reference("llama")
    directory, large = save(base, tmp_path / "base"), write_adapter(tmp_path / "large", base, rank=24)
    for adapters, asked, rank in ((), None, 16), (sources(large), None, 24), (sources(large), 8, 8):
        config = engine_config(directory, max_adapters=2, adapters=adapters, max_adapter_rank=asked)
        limits = adapter_limits(config)
        assert limits is not None
        assert (limits.slots, limits.rank) == (2, rank)
