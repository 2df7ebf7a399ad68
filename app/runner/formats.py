"""In which formats a model is served: what was asked, with ``auto`` replaced by the fastest that keeps quality."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import torch

from app.contract.config import EngineConfig
from app.kernels.backend import Backend
from app.kernels.dispatch import Mode
from app.kernels.pages import KVPages
from app.kernels.types import ActFormat
from app.models.config import AttentionConfig, DeltaConfig, ExpertsConfig, ModelConfig
from app.quant.placement import Placement, WeightFormat
from app.runner.device import choose_dtype
from app.runner.errors import RunnerError
from app.runner.kv_cache import KV_DTYPES

QUANTIZATIONS = ("auto", "none", "int8", "int8_weight_only")
WIDTH_FIELDS = {"mlp": "intermediate_size", "experts": "moe_intermediate_size"}
"""What a config calls the width of a feed-forward part, by kind; for messages."""
_PACKED_PAGES = ("bfloat16", "int8")
_log = logging.getLogger(__name__)


def choose_formats(
    config: EngineConfig, backend: Backend, model: ModelConfig | None = None
) -> tuple[EngineConfig, Placement]:
    """The config with every ``auto`` decided, and where its model's tensors go.

    On a CPU with native kernels ``auto`` is int8 weights, fp32 activations and int8 pages; a dtype asked for by name
    means weights of that dtype, and pages of bf16. On a GPU it is bf16 throughout.

    Args:
        model: whose widths the native kernels have to take; where they do not, linear layers run in plain torch, and
            ``auto`` takes the next format that is native. None: of any width.

    Raises:
        RunnerError: formats that do not go together, or not here.
    """
    _tell_slow(config, backend)
    quantization, dtype, weights = wanted = _choose(config, backend, {})
    packs = backend.packs_weights
    refusals = _refusals(model, config.tensor_parallel_size, backend) if packs and model is not None else {}
    if refusals:
        quantization, dtype, weights = _choose(config, backend, refusals)
    placement = Placement(dtype, backend.device, weights)
    if wanted != (quantization, dtype, weights):
        _tell_refused(wanted[2], placement, refusals, config)
    dtype_name = str(dtype).removeprefix("torch.")
    pages = config.kv_cache_dtype
    if pages == "auto":
        int8 = placement.format is WeightFormat.PACKED_INT8
        pages = "int8" if int8 else "bfloat16" if placement.packed else dtype_name
    if config.kernels == Mode.STRICT.value and packs:
        _check_strict(placement, pages, config, model, backend)
    chosen = msgspec.structs.replace(
        config, device=str(backend.device), dtype=dtype_name, quantization=quantization, kv_cache_dtype=pages
    )
    return chosen, placement


def _tell_slow(config: EngineConfig, backend: Backend) -> None:
    """Says so where the model will run in plain torch though nobody asked.

    Raises:
        RunnerError: it will, in strict mode.
    """
    why = backend.shortcoming
    if why is not None and config.kernels == Mode.STRICT.value:
        raise RunnerError(f"kernels = 'strict', but there are none: {why}")
    if why is not None and config.kernels == Mode.AUTO.value:
        _log.warning("no fast kernels, the model runs in plain torch, many times slower: %s", why)


def _choose(
    config: EngineConfig, backend: Backend, refusals: Mapping[torch.dtype, str]
) -> tuple[str, torch.dtype, WeightFormat]:
    """Quantisation, dtype and format of the weights where packed layers refuse those dtypes of weights."""
    packs = backend.packs_weights
    quantization = _choose_quantization(config, packs=packs and torch.int8 not in refusals)
    name = config.dtype
    if name == "auto" and packs and quantization == "none" and torch.bfloat16 not in refusals:
        name = "bfloat16"
    dtype = choose_dtype(name, backend.device)
    packs = packs and (torch.int8 if quantization == "int8" else torch.bfloat16) not in refusals
    return quantization, dtype, _weight_format(quantization, dtype, backend, packs=packs)


def _refusals(model: ModelConfig, ranks: int, backend: Backend) -> dict[torch.dtype, str]:
    """For each dtype in which native linear layers do not take the weights of a rank's share, why."""
    share = " / tensor_parallel_size" if ranks > 1 else ""
    widths = {("hidden_size", model.hidden_size): None}
    for layer in model.layers:
        match layer.mixer:
            case AttentionConfig(num_heads=heads, head_dim=head_dim):
                widths[f"num_attention_heads * head_dim{share}", heads * head_dim // ranks] = None
            case DeltaConfig(num_v_heads=heads, v_dim=head_dim):
                widths[f"linear_num_value_heads * linear_value_head_dim{share}", heads * head_dim // ranks] = None
        widths[f"{WIDTH_FIELDS[layer.mlp.kind]}{share}", layer.mlp.width // ranks] = None
        if isinstance(layer.mlp, ExpertsConfig) and layer.mlp.shared_width is not None:
            widths["shared_expert_intermediate_size", layer.mlp.shared_width] = None
    refusals: dict[torch.dtype, str] = {}
    for name, width in widths:
        for dtype in (torch.int8, torch.bfloat16):
            if (why := backend.refuses_weights(width, dtype)) is not None:
                kind = str(dtype).removeprefix("torch.")
                refusals.setdefault(dtype, f"{kind} weights [N, K] with K = {name} = {width} ({why})")
    return refusals


def _tell_refused(
    wanted: WeightFormat, placement: Placement, refusals: Mapping[torch.dtype, str], config: EngineConfig
) -> None:
    """Logs that the model's widths cost it a native format.

    Raises:
        RunnerError: all of them, in strict mode.
    """
    why = refusals[torch.int8 if wanted is WeightFormat.PACKED_INT8 else torch.bfloat16]
    if placement.packed:
        _log.warning("no native linear layer takes %s; weights are kept in bfloat16", why)
        return
    if config.kernels == Mode.STRICT.value:
        raise RunnerError(f"{config.model_dir}: kernels = 'strict', but no native linear layer takes {why}")
    _log.warning("no native linear layer takes %s; linear layers run in plain torch, many times slower", why)


def _choose_quantization(config: EngineConfig, *, packs: bool) -> str:
    asked = config.quantization
    if asked not in QUANTIZATIONS:
        raise RunnerError(f"quantization = {asked!r} is not supported; use one of {', '.join(QUANTIZATIONS)}")
    if asked == "int8_weight_only" and packs:
        raise RunnerError("quantization = 'int8_weight_only' is for GPUs; use 'int8' on a CPU")
    if asked == "auto":
        return "int8" if packs and config.dtype == "auto" else "none"
    return asked


def _weight_format(quantization: str, dtype: torch.dtype, backend: Backend, *, packs: bool) -> WeightFormat:
    if quantization == "int8_weight_only":
        return WeightFormat.W8A16
    if quantization == "int8":
        if packs:
            return WeightFormat.PACKED_INT8
        return WeightFormat.INT8 if backend.int8_input is ActFormat.INT8 else WeightFormat.W8A8
    return WeightFormat.PACKED_BF16 if packs and dtype == torch.bfloat16 else WeightFormat.PLAIN


def _check_strict(
    placement: Placement, pages: str, config: EngineConfig, model: ModelConfig | None, backend: Backend
) -> None:
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
    if model is None:
        return
    for attention in dict.fromkeys(model.attentions):
        head_dim, heads_per_kv = attention.head_dim, attention.num_heads // attention.num_kv_heads
        shape = KVPages(attention.num_kv_heads, head_dim, KV_DTYPES[pages])
        if not backend.packs_pages(shape, config.block_size, heads_per_kv=heads_per_kv):
            raise RunnerError(
                f"{config.model_dir}: kernels = 'strict', but no native attention takes head_dim = {head_dim} "
                f"in blocks of block_size = {config.block_size}, {heads_per_kv} query heads to a key head"
            )
