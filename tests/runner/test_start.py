"""Start-up: what is sized and reported, and the one clear line when something asked for is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.checkpoints.dummy import fill_dummy_weights
from app.checkpoints.header import WeightError
from app.contract.frames import LoadProgress
from app.contract.info import KVCacheGroup
from app.kernels import dispatch
from app.models.config import ConfigError
from app.runner.device import choose_threads
from app.runner.errors import RunnerError
from app.runner.model_runner import ModelRunner
from app.runner.start import make_runner
from tests.models.tiny import CONTEXT, make_reference, save
from tests.runner.driver import Request, engine_config, run, runner_of

BLOCK_BYTES = 3 * 2 * 2 * 16 * 16 * 4
"""layers, keys and values, heads, tokens, head width, fp32."""


def group_of(runner: ModelRunner) -> KVCacheGroup:
    (group,) = runner.info.kv_cache.groups
    return group


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_reference("qwen3"), tmp_path_factory.mktemp("checkpoint"))


def test_what_a_runner_says_of_itself(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, num_blocks=10)
    parameters = sum(p.numel() for p in make_reference("qwen3").parameters())
    assert runner.info.num_parameters == parameters
    assert runner.info.weight_bytes == 4 * parameters
    assert runner.info.vocab_size == 128
    assert group_of(runner).num_blocks == 10
    assert runner.info.kv_cache_bytes == 10 * BLOCK_BYTES
    (group,) = runner.info.kv_cache.groups
    assert (group.kind, group.num_layers, group.num_kv_heads, group.head_dim) == ("full", 3, 2, 16)
    assert group.bytes_per_block == BLOCK_BYTES


def test_phases_are_reported_in_order_and_weights_in_bytes(checkpoint: Path) -> None:
    seen: list[LoadProgress] = []
    make_runner(engine_config(checkpoint), seen.append)
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == ["config", "weights", "kv_cache", "warmup"]
    weights = [progress for progress in seen if progress.phase == "weights"]
    assert weights[-1].done == weights[-1].total > 0
    assert sorted(progress.done for progress in weights) == [progress.done for progress in weights]


@pytest.mark.parametrize(
    ("settings", "num_blocks", "max_model_len"),
    [
        ({"num_blocks": None, "kv_cache_memory": 20 * BLOCK_BYTES + 1}, 20, CONTEXT),
        ({"num_blocks": None, "kv_cache_memory": 3 * BLOCK_BYTES}, 3, 48),
        ({"num_blocks": 20, "max_model_len": 100}, 20, 100),
        ({"num_blocks": 20, "kv_cache_dtype": "bfloat16"}, 20, CONTEXT),
        ({"num_blocks": 7, "max_model_len": 100}, 7, 100),
        ({"num_blocks": 8, "block_size": 8}, 8, 64),
    ],
)
def test_sizes(checkpoint: Path, settings: dict[str, Any], num_blocks: int, max_model_len: int) -> None:
    runner = runner_of(checkpoint, **settings)
    assert (group_of(runner).num_blocks, runner.info.max_model_len) == (num_blocks, max_model_len)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"num_blocks": None, "kv_cache_memory": BLOCK_BYTES - 1}, ["kv_cache_memory", str(BLOCK_BYTES)]),
        (
            {"num_blocks": None, "kv_cache_memory": 6 * BLOCK_BYTES, "max_model_len": 100},
            ["kv_cache_memory", "max_model_len = 100", "7 blocks", str(7 * BLOCK_BYTES)],
        ),
        ({"num_blocks": 6, "max_model_len": 100}, ["num_blocks = 6", "max_model_len = 100", "7 blocks"]),
        ({"num_blocks": None, "kv_cache_memory": 1 << 60}, ["kv_cache_memory", "available"]),
        ({"max_model_len": CONTEXT + 1}, ["max_model_len = 257", "256"]),
        ({"max_model_len": 0}, ["max_model_len = 0"]),
        ({"dtype": "float64"}, ["dtype = 'float64'", "bfloat16"]),
        ({"dtype": "float16"}, ["dtype = 'float16'", "CUDA"]),
        ({"kv_cache_dtype": "int4"}, ["kv_cache_dtype = 'int4'"]),
        ({"device": "tpu"}, ["device = 'tpu'"]),
        ({"device": "meta"}, ["device = 'meta'"]),
        ({"device": "cuda:99"}, ["device = 'cuda:99'"]),
        ({"load_format": "pickle"}, ["load_format = 'pickle'"]),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(checkpoint: Path, settings: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(RunnerError) as error:
        runner_of(checkpoint, **settings)
    message = str(error.value)
    assert "\n" not in message
    for name in names:
        assert name in message


def test_auto_takes_what_the_machine_has(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, device="auto", dtype="auto")
    on_gpu = torch.cuda.is_available()
    assert runner.info.device == ("cuda" if on_gpu else "cpu")
    native = not on_gpu and dispatch.unavailable() is None
    assert runner.info.dtype == ("bfloat16" if on_gpu or native else "float32")
    (group,) = runner.info.kv_cache.groups
    assert group.dtype == runner.info.dtype


@pytest.mark.parametrize(
    ("text", "match"),
    [(None, "No such file"), ("{", "not valid JSON"), ("[]", "not a JSON object"), ("{}", "architectures")],
)
def test_a_bad_config_json_is_named(tmp_path: Path, text: str | None, match: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=match) as error:
        runner_of(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_weights_of_another_model_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4, "layer_types": None}))
    weights = tuple(str(file) for file in checkpoint.glob("*.safetensors"))
    with pytest.raises(WeightError, match=r"model\.layers\.3\."):
        runner_of(tmp_path, weights=weights)


def test_dummy_weights_need_no_files_and_follow_the_seed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    outputs = []
    for seed in (0, 0, 1):
        request = Request(0, [1, 2, 3], list(range(4)))
        run(runner_of(tmp_path, load_format="dummy", seed=seed), [request], 16)
        assert request.error is None
        outputs.append(request.outputs)
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


def test_dummy_weights_are_noise_but_norms_are_one() -> None:
    weights = {"a.weight": torch.empty(200, 200), "b_norm.weight": torch.empty(50), "a.bias": torch.empty(1000)}
    fill_dummy_weights(weights, seed=3)
    assert weights["a.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["a.bias"].std().item() == pytest.approx(0.02, rel=0.2)
    assert weights["b_norm.weight"].eq(1).all()


def test_threads_are_set_for_the_process(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        runner_of(checkpoint, threads=before + 1)
        assert torch.get_num_threads() == before + 1
        runner_of(checkpoint, threads=0)
        assert torch.get_num_threads() == choose_threads(0)
    finally:
        torch.set_num_threads(before)
