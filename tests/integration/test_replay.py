"""A recorded step is the eager one: the same ops in the same order, the same results bit for bit, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.contract.request import SamplingParams
from app.contract.step import StepResult
from app.kernels.native.program import Program
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from tests.integration.engines import isas
from tests.models.tiny import make_reference, save
from tests.runner.driver import Request, discard, engine_config
from tests.runner.steps import step_of

pytestmark = pytest.mark.skipif(not isas(), reason="no native kernels here")

NUM_TOKENS = 12
SHAPE = {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 2}
FORMATS = {
    "int8, bf16 pages": {"quantization": "int8", "kv_cache_dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, int8 pages": {"dtype": "bfloat16", "kv_cache_dtype": "int8"},
}


class Ran:
    """The programs that were run, each a list of ops."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = list[list[str]]()
        ran = self.programs

        class Noted(Program):
            """One program, noted whenever it runs."""

            def run(self, **fields: Any) -> None:
                ran.append(self.names)
                super().run(**fields)

        monkeypatch.setattr("app.kernels.dispatch.Program", Noted)
        monkeypatch.setattr("app.kernels.recorders.Program", Noted)

    def take(self) -> list[list[str]]:
        taken = list(self.programs)
        self.programs.clear()
        return taken


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    return Ran(monkeypatch)


CHECKPOINTS = [
    *("qwen3", "qwen3_biases", "llama_biases", "mistral", "qwen3_next", "gpt2", "qwen3moe", "gemma3_256"),
    *("gpt_neox", "starcoder2_sliding", "phi3", "cohere2", "lfm2"),
]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3 in all but size: heads of 128, four to a key/value head, normed queries and keys; and other shapes."""
    four_heads = request.param in ("gpt2", "gpt_neox", "cohere2", "lfm2")
    shape = SHAPE if request.param.startswith("qwen3") else {"hidden_size": 64 if four_heads else 96}
    return save(make_reference(request.param, **shape), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(params=list(FORMATS.values()), ids=list(FORMATS))
def runner(request: pytest.FixtureRequest, checkpoint: Path) -> ModelRunner:
    return make_runner(engine_config(checkpoint, kernels="strict", threads=2, **request.param), discard)


def requests() -> list[Request]:
    """Of all kinds: greedy and sampled, with log-probabilities and penalties, of one token and of several blocks."""
    return [
        Request(0, [7], list(range(4))),
        Request(1, [(3 * i) % 128 for i in range(40)], list(range(4, 9)), SamplingParams(top_p=0.9), seed=5),
        Request(2, [1, 2, 3], list(range(9, 13)), SamplingParams(temperature=0.0, logprobs=2, prompt_logprobs=1)),
        Request(3, [9] * 17, list(range(13, 17)), SamplingParams(repetition_penalty=1.3, top_k=20), seed=6),
    ]


def steps(runner: ModelRunner, sequences: Sequence[Request]) -> list[StepResult]:
    """All sequences together, the prompts in chunks of eleven tokens; so that most steps decode and prefill."""
    results, num_groups = [], len(runner.info.kv_cache.groups)
    while active := [s for s in sequences if len(s.outputs) < NUM_TOKENS]:
        slots = [init for s in active for init in s.bind()]
        rows = [s.next_row(11, from_device=s.num_computed >= len(s.prompt), num_groups=num_groups) for s in active]
        results.append(runner.collect(runner.submit(step_of(rows, slots))))
        for sequence, output in zip(active, results[-1].rows, strict=True):
            sequence.take(output)
    return results


def test_every_step_is_one_call_of_the_ops_that_run_eagerly(ran: Ran, runner: ModelRunner) -> None:
    ran.take()
    replayed, programs = steps(runner, requests()), ran.take()
    assert all(result.replayed for result in replayed)
    whole = [names for names in programs if names != ["logprobs"]]
    assert len(whole) == len(replayed), "one call a step"
    runner.run_eagerly()
    eager = steps(runner, requests())
    assert not any(result.replayed for result in eager)
    assert [result.rows for result in replayed] == [result.rows for result in eager]
    assert [name for names in whole for name in names] == [n for names in ran.take() for n in names if n != "logprobs"]
    assert set(whole[0]) >= {"embed", "linear", "rope_kv", "attention", "sample", "record"}
    assert {"add_norm", "layer_norm"} & set(whole[0])


@pytest.mark.parametrize("checkpoint", ["qwen3moe"], indirect=True)
def test_a_step_routes_within_its_one_call(ran: Ran, runner: ModelRunner) -> None:
    ran.take()
    steps(runner, requests())
    for names in ran.take():
        if names != ["logprobs"]:
            layer = names[names.index("route") : names.index("route") + 4]
            assert [name for name in layer if name != "quantize"][:2] == ["route", "group_slots"]
            assert names.count("route") == 2


def test_a_step_without_logits_is_replayed_too(runner: ModelRunner) -> None:
    sequence, num_groups = requests()[1], len(runner.info.kv_cache.groups)
    result = runner.collect(runner.submit(step_of([sequence.next_row(11, num_groups=num_groups)], sequence.bind())))
    assert result.replayed
    assert result.rows[0].token_ids == []
