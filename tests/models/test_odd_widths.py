"""Widths that no kernel was made for are served in every format, by native kernels where they can."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract.config import EngineConfig
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.models.architectures import parse_config
from app.models.config import ModelConfig
from app.quant.placement import WeightFormat
from app.runner.errors import RunnerError
from app.runner.formats import choose_formats
from tests.models.checkpoints import checkpoint, expected_logprobs, served_logprobs
from tests.models.test_config import SMOLLM2
from tests.runner.driver import engine_config, runner_of
from tests.runner.ranks import run_on_ranks

AUTO: dict[str, Any] = {"dtype": "auto", "quantization": "auto"}
native = pytest.mark.skipif(dispatch.unavailable() is not None, reason="no native kernels")

WIDTHS: dict[str, dict[str, Any]] = {
    "hidden_30": {"hidden_size": 30, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 6},
    "hidden_odd": {"hidden_size": 33},
    "inner_odd": {"intermediate_size": 97},
    "inner_2": {"intermediate_size": 98},
    "heads_of_2": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 2},
    "heads_of_10": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10},
    "heads_of_18": {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": 18},
    "heads_of_272": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 272},
    "heads_sharing_one": {"num_attention_heads": 129, "num_key_value_heads": 1},
    "vocab_odd": {"vocab_size": 131},
    "groups_odd": {"hidden_size": 68, "intermediate_size": 132},
    "all_odd": {
        "vocab_size": 129,
        "hidden_size": 35,
        "intermediate_size": 37,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 14,
    },
}
FORMATS: dict[str, dict[str, Any]] = {
    "auto": AUTO,
    "bfloat16": {**AUTO, "dtype": "bfloat16"},
    "float32": {**AUTO, "dtype": "float32"},
    "int8": {**AUTO, "quantization": "int8"},
    "int8_pages": {**AUTO, "kv_cache_dtype": "int8"},
    "plain_torch": {**AUTO, "kernels": "reference"},
}
TOLERANCE = {"float32": 1e-5, "plain_torch": 1e-5}
"""Of the mean squared difference relative to the log-probabilities' variance; rounded formats have more."""


@pytest.fixture(autouse=True)
def restored() -> Any:
    yield
    dispatch.configure(dispatch.Mode.AUTO, 1)


@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("variant", ["mistral", "qwen3_biases"])
def test_odd_widths_are_served_in_every_format(tmp_path: Path, variant: str, widths: dict[str, Any]) -> None:
    shape: dict[str, Any] = {"hidden_size": 64, "head_dim": 16, **widths}
    directory = checkpoint(tmp_path, variant, **shape)
    expected = expected_logprobs(directory)
    for name, options in FORMATS.items():
        served = served_logprobs(runner_of(directory, **options))
        error = ((served - expected).square().mean() / expected.var()).item()
        assert error < TOLERANCE.get(name, 0.02), name


def config_of(**fields: int) -> ModelConfig:
    return parse_config({**SMOLLM2, "head_dim": 64, **fields})


def chosen(model: ModelConfig, **options: Any) -> tuple[str, str, WeightFormat]:
    dispatch.configure(dispatch.Mode(options.get("kernels", "auto")), 1)
    config, placement = choose_formats(
        EngineConfig(model_dir="m", **options), choose_backend(torch.device("cpu")), model
    )
    return config.dtype, config.quantization, placement.format


@native
@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        ({}, AUTO, ("float32", "int8", WeightFormat.PACKED_INT8)),
        ({"hidden_size": 578}, AUTO, ("bfloat16", "none", WeightFormat.PACKED_BF16)),
        ({"intermediate_size": 1538}, AUTO, ("bfloat16", "none", WeightFormat.PACKED_BF16)),
        ({"intermediate_size": 65540}, AUTO, ("bfloat16", "none", WeightFormat.PACKED_BF16)),
        ({"hidden_size": 577}, AUTO, ("float32", "none", WeightFormat.PLAIN)),
        ({"head_dim": 2}, AUTO, ("bfloat16", "none", WeightFormat.PACKED_BF16)),
        ({"hidden_size": 578}, {**AUTO, "quantization": "int8"}, ("float32", "int8", WeightFormat.INT8)),
        ({"hidden_size": 577}, {**AUTO, "dtype": "bfloat16"}, ("bfloat16", "none", WeightFormat.PLAIN)),
        ({"hidden_size": 578}, {**AUTO, "kernels": "strict"}, ("bfloat16", "none", WeightFormat.PACKED_BF16)),
    ],
)
def test_the_next_native_format_is_taken(fields: Any, options: Any, expected: Any) -> None:
    assert chosen(config_of(**fields), **options) == expected


@native
@pytest.mark.parametrize("options", [AUTO, {**AUTO, "quantization": "int8"}, {**AUTO, "dtype": "bfloat16"}])
def test_strict_mode_names_the_cause(options: dict[str, Any]) -> None:
    with pytest.raises(RunnerError, match=r"^m: kernels = 'strict'.*hidden_size = 577 \(K is no multiple of [24]\)"):
        chosen(config_of(hidden_size=577), **options, kernels="strict")


@native
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"head_dim": 20}, {}),
        ({"head_dim": 528}, {}),
        ({"num_attention_heads": 129, "num_key_value_heads": 1}, {}),
        ({}, {"block_size": 8}),
    ],
)
def test_strict_mode_names_what_attention_does_not_take(fields: dict[str, int], options: dict[str, Any]) -> None:
    with pytest.raises(RunnerError, match=r"^m: kernels = 'strict'.*head_dim = \d+ in blocks of block_size = \d+"):
        chosen(config_of(**fields), **AUTO, **options, kernels="strict")


@native
def test_a_lost_format_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chosen(config_of(), **AUTO)
        chosen(config_of(hidden_size=577), **{**AUTO, "dtype": "float32"})
        assert not caplog.records
        chosen(config_of(intermediate_size=1538), **AUTO)
        (record,) = caplog.records
        assert "intermediate_size = 1538" in record.getMessage()
        assert "bfloat16" in record.getMessage()


@native
def test_a_ranks_share_may_be_odd_where_the_whole_is_not(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "m", "qwen3", hidden_size=64, intermediate_size=100)
    config = engine_config(directory, tensor_parallel_size=2, **AUTO)
    expected = expected_logprobs(directory)
    for logprobs in run_on_ranks(config, tmp_path / "meeting", served_logprobs):
        assert ((logprobs - expected).square().mean() / expected.var()).item() < 0.02
