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

QUANTIZATIONS = ("auto", "none", "int8", "int8_weight_only")
_PACKED_PAGES = ("bfloat16", "int8")
_log = logging.getLogger(__name__)


def choose_formats(config: EngineConfig, device: torch.device) -> tuple[EngineConfig, Placement]:
    """The config with every ``auto`` decided, and where its model's tensors go.

    On a CPU with native kernels ``auto`` is int8 weights, fp32 activations and int8 pages; a dtype asked for by name
    means weights of that dtype, and pages of bf16. On a GPU it is bf16 throughout. Call it after
    :func:`app.kernels.dispatch.configure`.

    Raises:
        RunnerError: formats that do not go together, or not here.
    """
    native = _has_native(config, device)
    quantization = _choose_quantization(config, native=native)
    name = config.dtype
    if name == "auto" and native and quantization == "none":
        name = "bfloat16"
    dtype = choose_dtype(name, device)
    placement = Placement(dtype, device, _weight_format(quantization, dtype, device, native=native))
    dtype_name = str(dtype).removeprefix("torch.")
    pages = config.kv_cache_dtype
    if pages == "auto":
        int8 = placement.format is WeightFormat.PACKED_INT8
        pages = "int8" if int8 else "bfloat16" if placement.packed else dtype_name
    if config.kernels == dispatch.Mode.STRICT.value and native:
        _check_strict(placement, pages)
    chosen = msgspec.structs.replace(
        config, device=str(device), dtype=dtype_name, quantization=quantization, kv_cache_dtype=pages
    )
    return chosen, placement


def _has_native(config: EngineConfig, device: torch.device) -> bool:
    """Whether this is a CPU with native kernels. Says so where the model will run in plain torch though nobody asked.

    Raises:
        RunnerError: it will, in strict mode.
    """
    why = dispatch.unavailable() if device.type == "cpu" else None
    native = device.type == "cpu" and why is None
    if native or dispatch.runs_triton_on(device):
        return native
    if why is None:
        why = f"Triton, which runs them on {device}, is not installed"
    if config.kernels == dispatch.Mode.STRICT.value:
        raise RunnerError(f"kernels = 'strict', but there are none: {why}")
    if config.kernels == dispatch.Mode.AUTO.value:
        _log.warning("no fast kernels, the model runs in plain torch, many times slower: %s", why)
    return False


def _choose_quantization(config: EngineConfig, *, native: bool) -> str:
    asked = config.quantization
    if asked not in QUANTIZATIONS:
        raise RunnerError(f"quantization = {asked!r} is not supported; use one of {', '.join(QUANTIZATIONS)}")
    if asked == "int8_weight_only" and native:
        raise RunnerError("quantization = 'int8_weight_only' is for GPUs; use 'int8' on a CPU")
    if asked == "auto":
        return "int8" if native and config.dtype == "auto" else "none"
    return asked


def _weight_format(quantization: str, dtype: torch.dtype, device: torch.device, *, native: bool) -> WeightFormat:
    if quantization == "int8_weight_only":
        return WeightFormat.W8A16
    if quantization == "int8":
        if native:
            return WeightFormat.PACKED_INT8
        # A CPU without native kernels computes what they specify.
        plain_cpu = device.type == "cpu" and not dispatch.runs_triton_on(device)
        return WeightFormat.INT8 if plain_cpu else WeightFormat.W8A8
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
