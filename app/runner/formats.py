"""In which formats a model is served: what was asked, with ``auto`` replaced by the fastest that keeps quality."""

from __future__ import annotations

import logging

import msgspec
import torch

from app.kernels import dispatch
from app.quant.placement import Placement, WeightFormat
from app.runner.device import choose_dtype
from app.runner.errors import RunnerError
from app.types import EngineConfig

QUANTIZATIONS = ("auto", "none", "int8")
_PACKED_PAGES = ("bfloat16", "int8")
_log = logging.getLogger(__name__)


def choose_formats(config: EngineConfig, device: torch.device) -> tuple[EngineConfig, Placement]:
    """The config with every ``auto`` decided, and where its model's tensors go.

    On a CPU with native kernels ``auto`` is int8 weights, fp32 activations and bf16 pages; a dtype asked for by name
    means weights of that dtype. Call it after :func:`app.kernels.dispatch.configure`.

    Raises:
        RunnerError: formats that do not go together, or not here.
    """
    why = dispatch.unavailable() if device.type == "cpu" else f"the model is on {device}"
    native = why is None
    if config.kernels == dispatch.Mode.STRICT.value and not native:
        raise RunnerError(f"kernels = 'strict', but there are no native kernels: {why}")
    if device.type == "cpu" and config.kernels == dispatch.Mode.AUTO.value and not native:
        _log.warning("no native kernels, the model runs in plain torch, many times slower: %s", why)
    quantization = _choose_quantization(config, device, native=native)
    name = config.dtype
    if name == "auto" and native and quantization == "none":
        name = "bfloat16"
    dtype = choose_dtype(name, device)
    placement = Placement(dtype, device, _weight_format(quantization, dtype, native=native))
    dtype_name = str(dtype).removeprefix("torch.")
    pages = config.kv_cache_dtype
    if pages == "auto":
        pages = "bfloat16" if placement.packed else dtype_name
    if config.kernels == dispatch.Mode.STRICT.value:
        _check_strict(placement, pages)
    chosen = msgspec.structs.replace(
        config, device=str(device), dtype=dtype_name, quantization=quantization, kv_cache_dtype=pages
    )
    return chosen, placement


def _choose_quantization(config: EngineConfig, device: torch.device, *, native: bool) -> str:
    asked = config.quantization
    if asked not in QUANTIZATIONS:
        raise RunnerError(f"quantization = {asked!r} is not supported; use one of {', '.join(QUANTIZATIONS)}")
    if asked == "int8" and device.type != "cpu":
        raise RunnerError(f"quantization = 'int8' is for CPUs so far; use 'none' on {device}")
    if asked == "auto":
        return "int8" if native and config.dtype == "auto" else "none"
    return asked


def _weight_format(quantization: str, dtype: torch.dtype, *, native: bool) -> WeightFormat:
    if quantization == "int8":
        return WeightFormat.PACKED_INT8 if native else WeightFormat.INT8
    return WeightFormat.PACKED_BF16 if native and dtype == torch.bfloat16 else WeightFormat.PLAIN


def _check_strict(placement: Placement, pages: str) -> None:
    if not placement.packed:
        raise RunnerError(
            f"kernels = 'strict' has no native linear layer for weights of {placement.dtype}; "
            "use quantization 'int8' or dtype 'bfloat16'"
        )
    if pages not in _PACKED_PAGES:
        raise RunnerError(
            f"kernels = 'strict' has no native attention over pages of {pages}; "
            f"use kv_cache_dtype {' or '.join(map(repr, _PACKED_PAGES))}"
        )
