"""A model on several ranks: the tokens of one, on less memory each; and what happens when a rank is not there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.contract.config import EngineConfig
from app.contract.info import RunnerInfo
from app.contract.request import SamplingParams
from app.runner.errors import RunnerError
from app.runner.model_runner import ModelRunner
from app.runner.parallel import ParallelRunner, start_runner
from app.runner.rank_processes import RankProcesses
from tests.models.tiny import VARIANTS, family_of, make_reference, save
from tests.runner.driver import Request, discard, engine_config, run, runner_of
from tests.runner.ranks import run_on_ranks
from tests.runner.steps import GREEDY, row_of, slot_of, step_of

NUM_TOKENS = 16
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.1, logprobs=2)


UNLIKE = ("deepseek", "falcon_h1", "granitemoehybrid", "minicpm3", "olmo2", "olmoe", "qwen3_next")
"""Families that ranks do not share in this way: each rank keeps all latents (``tests/models/latent_serving.py``), norms
over all heads and recurrent states are refused."""


def shared_variants() -> list[str]:
    """The first tiny model of each other family; and those whose biases and windows are shared out too."""
    first = dict[str, str]()
    for variant, (config, _) in VARIANTS.items():
        first.setdefault(family_of(config).module.rpartition(".")[2], variant)
    shared = [variant for family, variant in first.items() if family not in UNLIKE]
    return [*shared, "llama_biases", "qwen2_sliding", "qwen3_biases"]


@dataclass(frozen=True)
class Answer:
    """What a runner made of the prompts, and what it is."""

    tokens: list[list[int]]
    info: RunnerInfo


def answer(runner: ModelRunner | ParallelRunner) -> Answer:
    """Two greedy sequences, one of them in chunks, and a seeded one."""
    requests = [
        Request(0, list(range(40)), [0, 1, 2, 3, 4]),
        Request(1, [7, 9, 11], [5, 6]),
        Request(2, [3, 1, 4, 1, 5], [8, 7], SEEDED, seed=11),
    ]
    run(runner, requests, NUM_TOKENS, chunk=16)
    assert [request.error for request in requests] == [None] * 3
    return Answer([request.outputs for request in requests], runner.info)


@pytest.mark.parametrize("variant", shared_variants())
def test_ranks_sample_the_tokens_of_one(variant: str, tmp_path: Path) -> None:
    directory = save(make_reference(variant), tmp_path)
    whole = answer(runner_of(directory))
    shares = run_on_ranks(engine_config(directory, tensor_parallel_size=2), tmp_path / "meeting", answer)
    for share in shares:
        assert share.tokens == whole.tokens
        assert share.info.num_parameters == whole.info.num_parameters
        assert share.info.weight_bytes < 0.6 * whole.info.weight_bytes
        assert share.info.kv_cache_bytes * 2 == whole.info.kv_cache_bytes


@pytest.mark.parametrize("formats", [{"quantization": "int8"}, {"kernels": "reference", "dtype": "bfloat16"}])
def test_ranks_agree_in_other_formats(formats: dict[str, Any], tmp_path: Path) -> None:
    """They need not agree with one rank on every token: sums are rounded, and int8 is scaled, within a rank."""
    directory = save(make_reference("llama_biases", hidden_size=96), tmp_path)
    whole = runner_of(directory, **formats)
    first, second = run_on_ranks(
        engine_config(directory, tensor_parallel_size=2, **formats), tmp_path / "meeting", answer
    )
    assert first.tokens == second.tokens
    assert max(first.info.weight_bytes, second.info.weight_bytes) < 0.6 * whole.info.weight_bytes


def test_a_vocabulary_that_does_not_divide(tmp_path: Path) -> None:
    directory = save(make_reference("qwen2", vocab_size=101), tmp_path)
    whole = answer(runner_of(directory))
    shares = run_on_ranks(engine_config(directory, tensor_parallel_size=2), tmp_path / "meeting", answer)
    assert [share.tokens for share in shares] == [whole.tokens] * 2


def test_dummy_weights_are_those_of_one_rank(tmp_path: Path) -> None:
    directory = save(make_reference("llama_biases"), tmp_path)
    dummy: dict[str, Any] = {"load_format": "dummy", "seed": 5}
    whole = answer(runner_of(directory, **dummy))
    shares = run_on_ranks(engine_config(directory, tensor_parallel_size=2, **dummy), tmp_path / "meeting", answer)
    assert [share.tokens for share in shares] == [whole.tokens] * 2


def test_packed_weights_of_each_rank_are_kept(tmp_path: Path) -> None:
    directory = save(make_reference("llama_biases", hidden_size=96), tmp_path / "model")
    config = engine_config(
        directory, tensor_parallel_size=2, quantization="int8", packed_cache=str(tmp_path / "packed")
    )
    first = run_on_ranks(config, tmp_path / "meeting", answer)
    assert len(list((tmp_path / "packed").glob("*.packed"))) == 2
    assert run_on_ranks(config, tmp_path / "again", answer) == first


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_reference("qwen3"), tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (3, ["tensor_parallel_size = 3", "num_key_value_heads = 2", "use one of 1, 2"]),
        (4, ["num_attention_heads = 6 and num_key_value_heads = 2"]),
    ],
)
def test_what_cannot_be_shared_out_is_one_clear_line(checkpoint: Path, size: int, names: list[str]) -> None:
    with pytest.raises(RunnerError) as error:
        start_runner(engine_config(checkpoint, tensor_parallel_size=size), discard)
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


def ranks_of_this_process() -> list[psutil.Process]:
    """Not the servers that other tests leave running for those behind them."""
    return [child for child in psutil.Process().children() if "app.runner.rank" in " ".join(child.cmdline())]


def start(config: EngineConfig, lost: list[str], gone: threading.Event) -> ParallelRunner:
    def on_lost(reason: str) -> None:
        lost.append(reason)
        gone.set()

    runner = start_runner(config, discard, on_lost)
    assert isinstance(runner, ParallelRunner)
    return runner


def test_a_rank_in_a_process_of_its_own_and_its_death(checkpoint: Path) -> None:
    lost, gone = list[str](), threading.Event()
    runner = start(engine_config(checkpoint, tensor_parallel_size=2), lost, gone)
    (rank,) = ranks_of_this_process()
    whole = runner_of(checkpoint)
    assert answer(runner).tokens == answer(whole).tokens
    assert 1.0 < runner.info.weight_bytes / whole.info.weight_bytes < 1.2
    assert runner.info.kv_cache_bytes == whole.info.kv_cache_bytes

    rank.kill()
    assert gone.wait(10)
    assert lost == ["rank 1 was ended by SIGKILL"]
    with pytest.raises(RunnerError, match="rank 1 was ended by SIGKILL"):
        runner.submit(step_of([row_of(0, 0, [1], blocks=[0])], [slot_of(0, [1], GREEDY)]))
    runner.close()
    assert ranks_of_this_process() == []
    assert len(lost) == 1


def test_ranks_stay_when_the_thread_that_started_them_ends(checkpoint: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        runner = pool.submit(start_runner, engine_config(checkpoint, tensor_parallel_size=2), discard).result()
    assert isinstance(runner, ParallelRunner)
    assert answer(runner).tokens == answer(runner_of(checkpoint)).tokens
    runner.close()
    assert ranks_of_this_process() == []


def test_a_step_that_fails_ends_the_ranks(checkpoint: Path) -> None:
    lost, gone = list[str](), threading.Event()
    runner = start(engine_config(checkpoint, tensor_parallel_size=2), lost, gone)
    (rank,) = ranks_of_this_process()
    with pytest.raises(RunnerError, match="beyond the blocks"):
        runner.submit(step_of([row_of(0, 0, [1] * 40, blocks=[0])], [slot_of(0, [1] * 40, GREEDY)]))
    assert gone.wait(10)
    assert "beyond the blocks" in lost[0]
    rank.wait(10)
    runner.close()


def test_a_rank_that_cannot_load_says_why(tmp_path: Path) -> None:
    lost = list[str]()
    checkpoint = save(make_reference("qwen3", num_key_value_heads=6), tmp_path)
    absent = str(tmp_path / "absent.safetensors")
    ranks = RankProcesses(engine_config(checkpoint, tensor_parallel_size=3, weights=(absent,)), lost.append)
    with pytest.raises(RunnerError, match=r"rank [12]: .*absent\.safetensors: No such file"):
        ranks.wait_loaded()
    ranks.stop()
    assert len(lost) == 1
    assert ranks_of_this_process() == []
