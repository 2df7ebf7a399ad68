"""Which formats a model is served in: what ``auto`` becomes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from app.contract.config import EngineConfig
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.kernels.dispatch import Mode
from app.quant.placement import WeightFormat
from app.runner.errors import RunnerError
from app.runner.formats import choose_formats

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
AUTO: dict[str, Any] = {"dtype": "auto", "quantization": "auto"}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    dispatch.configure(Mode.AUTO, 1)


def chosen(device: torch.device = CPU, **fields: Any) -> tuple[str, str, str, WeightFormat]:
    """Dtype, quantisation, pages and weight format."""
    dispatch.configure(Mode(fields.get("kernels", "auto")), 1)
    config, placement = choose_formats(EngineConfig(model_dir="m", **fields), choose_backend(device))
    assert str(placement.dtype) == f"torch.{config.dtype}"
    return config.dtype, config.quantization, config.kv_cache_dtype, placement.format


@pytest.fixture
def native() -> None:
    dispatch.configure(Mode.AUTO, 1)
    if (why := dispatch.unavailable()) is not None:
        pytest.skip(why)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (AUTO, ("float32", "int8", "int8", WeightFormat.PACKED_INT8)),
        ({**AUTO, "kv_cache_dtype": "bfloat16"}, ("float32", "int8", "bfloat16", WeightFormat.PACKED_INT8)),
        ({**AUTO, "quantization": "none"}, ("bfloat16", "none", "bfloat16", WeightFormat.PACKED_BF16)),
        ({**AUTO, "dtype": "bfloat16"}, ("bfloat16", "none", "bfloat16", WeightFormat.PACKED_BF16)),
        ({**AUTO, "dtype": "float32"}, ("float32", "none", "float32", WeightFormat.PLAIN)),
        ({"dtype": "float32", "quantization": "int8"}, ("float32", "int8", "int8", WeightFormat.PACKED_INT8)),
        ({"dtype": "bfloat16", "quantization": "int8"}, ("bfloat16", "int8", "int8", WeightFormat.PACKED_INT8)),
        ({**AUTO, "quantization": "file"}, ("float32", "file", "int8", WeightFormat.BLOCKS)),
        ({"dtype": "bfloat16", "quantization": "file"}, ("bfloat16", "file", "int8", WeightFormat.BLOCKS)),
        ({}, ("float32", "none", "float32", WeightFormat.PLAIN)),
    ],
)
def test_native_kernels_take_packed_weights(
    fields: dict[str, Any], expected: tuple[str, str, str, WeightFormat]
) -> None:
    assert chosen(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (AUTO, ("float32", "none", "float32", WeightFormat.PLAIN)),
        ({**AUTO, "dtype": "bfloat16"}, ("bfloat16", "none", "bfloat16", WeightFormat.PLAIN)),
        ({**AUTO, "quantization": "int8"}, ("float32", "int8", "float32", WeightFormat.INT8)),
        ({**AUTO, "quantization": "int8_weight_only"}, ("float32", "int8_weight_only", "float32", WeightFormat.W8A16)),
    ],
)
def test_plain_torch_takes_plain_weights(fields: dict[str, Any], expected: tuple[str, str, str, WeightFormat]) -> None:
    assert chosen(kernels="reference", **fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (AUTO, ("bfloat16", "none", "bfloat16", WeightFormat.PLAIN)),
        ({**AUTO, "kernels": "strict"}, ("bfloat16", "none", "bfloat16", WeightFormat.PLAIN)),
        ({**AUTO, "quantization": "int8"}, ("bfloat16", "int8", "bfloat16", WeightFormat.W8A8)),
        (
            {"dtype": "float16", "quantization": "int8_weight_only", "kv_cache_dtype": "int8"},
            ("float16", "int8_weight_only", "int8", WeightFormat.W8A16),
        ),
    ],
)
def test_a_gpu_keeps_its_own_defaults(fields: dict[str, Any], expected: tuple[str, str, str, WeightFormat]) -> None:
    assert chosen(CUDA, **fields) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (AUTO, ("float32", "none", "float32", WeightFormat.PLAIN)),
        ({"dtype": "bfloat16"}, ("bfloat16", "none", "bfloat16", WeightFormat.PLAIN)),
        ({**AUTO, "quantization": "int8"}, ("float32", "int8", "float32", WeightFormat.W8A8)),
        ({**AUTO, "quantization": "int8_weight_only"}, ("float32", "int8_weight_only", "float32", WeightFormat.W8A16)),
    ],
)
def test_interpreted_kernels_take_what_a_gpu_takes(
    fields: dict[str, Any], expected: tuple[str, str, str, WeightFormat]
) -> None:
    assert chosen(kernels="interpret", **fields) == expected


def test_a_cpu_without_native_kernels_is_told_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "unavailable", lambda: "this CPU has no AVX2")
    config, placement = choose_formats(EngineConfig(model_dir="m", **AUTO), choose_backend(CPU))
    assert (config.dtype, config.quantization, placement.format) == ("float32", "none", WeightFormat.PLAIN)
    (record,) = caplog.records
    assert "this CPU has no AVX2" in record.getMessage()
    with pytest.raises(RunnerError, match="this CPU has no AVX2"):
        choose_formats(EngineConfig(model_dir="m", kernels="strict"), choose_backend(CPU))


def test_a_gpu_without_triton_is_told_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(dispatch, "runs_triton_on", lambda _device: False)
    assert chosen(CUDA, **AUTO) == ("bfloat16", "none", "bfloat16", WeightFormat.PLAIN)
    (record,) = caplog.records
    assert "Triton, which runs them on cuda, is not installed" in record.getMessage()
    with pytest.raises(RunnerError, match=r"kernels = 'strict'.*Triton"):
        chosen(CUDA, kernels="strict")


@pytest.mark.parametrize(
    ("device", "fields", "names"),
    [
        (CPU, {"quantization": "int4"}, ["quantization = 'int4'", "int8"]),
        (CPU, {"dtype": "float16", "quantization": "int8"}, ["dtype = 'float16'"]),
    ],
)
def test_formats_that_cannot_be_had(device: torch.device, fields: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(RunnerError) as error:
        chosen(device, **fields)
    for name in names:
        assert name in str(error.value)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"dtype": "float32", "quantization": "none"}, ["kernels = 'strict'", "float32", "int8"]),
        ({**AUTO, "kv_cache_dtype": "float32"}, ["kernels = 'strict'", "pages of float32", "'bfloat16'"]),
        ({**AUTO, "quantization": "int8_weight_only"}, ["quantization = 'int8_weight_only'", "'int8'"]),
    ],
)
def test_strict_refuses_what_has_no_native_kernel(fields: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(RunnerError) as error:
        chosen(kernels="strict", **fields)
    for name in names:
        assert name in str(error.value)
