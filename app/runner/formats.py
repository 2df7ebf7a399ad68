"""In which formats a model is served: what was asked, with ``auto`` replaced by the fastest that keeps quality."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import msgspec
import torch

from app.contract.config import EngineConfig
from app.kernels.backend import Backend
from app.kernels.dispatch import Mode
from app.kernels.pages import KVPages
from app.models.config import (
    AttentionConfig,
    DeltaConfig,
    ExpertsConfig,
    LatentConfig,
    MambaConfig,
    ModelConfig,
    ShortConvConfig,
)
from app.quant.formats import QUANTIZATIONS, WeightFormat
from app.quant.placement import Placement
from app.runner.device import choose_dtype
from app.runner.errors import RunnerError
from app.runner.kv_cache import KV_DTYPES

WIDTH_FIELDS = {"mlp": "intermediate_size", "experts": "moe_intermediate_size"}
"""What a config calls the width of a feed-forward part, by kind; for messages."""
SHARED_WIDTH_FIELD = "shared_expert_intermediate_size"
"""Likewise of an expert that every token goes through."""
_PACKED_PAGES = ("bfloat16", "int8")
_log = logging.getLogger(__name__)


def choose_formats(
    config: EngineConfig, backend: Backend, model: ModelConfig | None = None
) -> tuple[EngineConfig, Placement]:
    """The config with every ``auto`` decided, and where its model's tensors go.

    On a CPU with native kernels ``auto`` is int8 weights, fp32 activations and int8 pages (bf16 ones of latents); a
    dtype asked for by name means weights of that dtype, and pages of bf16. On a GPU it is bf16 throughout.

    Args:
        model: whose widths the native kernels have to take; where they do not, linear layers run in plain torch, and
            ``auto`` takes the next format that is native. None: of any width.

    Raises:
        RunnerError: formats that do not go together, or not here.
    """
    _tell_slow(config, backend)
    packs = backend.packs_weights
    refusal = partial(_refusal, backend, [] if model is None else _widths(model, config.tensor_parallel_size))
    quantization, dtype, weights = _choose(config, backend, lambda kind: packs and refusal(kind) is None)
    placement = Placement(dtype, backend.device, weights)
    wanted = _choose(config, backend, lambda _kind: packs)[-1].storage.packed_dtype
    if wanted is not None and (why := refusal(wanted)) is not None:
        _tell_refused(why, placement, config)
    dtype_name = str(dtype).removeprefix("torch.")
    pages = config.kv_cache_dtype
    if pages == "auto":
        pages = weights.storage.pages or dtype_name
        if pages == "int8" and model is not None and model.latents:
            pages = "bfloat16"
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


Takes = Callable[[torch.dtype], bool]
"""Tells whether a backend packs all of a model's weights in a dtype."""


def _choose(config: EngineConfig, backend: Backend, takes: Takes) -> tuple[str, torch.dtype, WeightFormat]:
    """Quantisation, dtype and format of the weights.

    Raises:
        RunnerError: they do not go together, or not here.
    """
    quantization, name = config.quantization, config.dtype
    if quantization not in QUANTIZATIONS:
        raise RunnerError(f"quantization = {quantization!r} is not supported; use one of {', '.join(QUANTIZATIONS)}")
    if quantization == "auto":
        quantization = "int8" if name == "auto" and takes(torch.int8) else "none"
    if name == "auto" and quantization == "none" and takes(torch.bfloat16):
        name = "bfloat16"
    dtype = choose_dtype(name, backend.device)
    return quantization, dtype, find_format(quantization, dtype, backend, takes)


def find_format(
    quantization: str, dtype: torch.dtype, backend: Backend, takes: Takes = lambda _kind: False
) -> WeightFormat:
    """The first format that a setting asks for and a backend computes.

    Args:
        quantization: decided, not ``auto``.
        dtype: of activations.
        takes: by default no weights are packed.

    Raises:
        RunnerError: there is none.
    """
    for row in WeightFormat:
        if row.quantization == quantization and row.storage.suits(dtype, backend, takes):
            return row
    others = [name for name in QUANTIZATIONS if name != quantization]
    raise RunnerError(
        f"quantization = {quantization!r} is not for {backend.device}; use one of {', '.join(map(repr, others))}"
    )


def _widths(model: ModelConfig, ranks: int) -> list[tuple[str, int]]:
    """What a config calls the inputs of a model's linear layers, of a rank's share, and how many they are."""
    share = " / tensor_parallel_size" if ranks > 1 else ""
    widths = {("hidden_size", model.hidden_size): None}
    if model.layer_inputs is not None:
        widths["hidden_size_per_layer_input", model.layer_inputs.width] = None
    for mixer in model.mixers:
        match mixer:
            case AttentionConfig(num_heads=heads, head_dim=head_dim):
                widths[f"num_attention_heads * head_dim{share}", heads * head_dim // ranks] = None
            case ShortConvConfig(channels=channels):
                widths[f"hidden_size{share}", channels // ranks] = None
            case LatentConfig(num_heads=heads, v_dim=v_dim, q_rank=q_rank):
                widths[f"num_attention_heads * v_head_dim{share}", heads * v_dim // ranks] = None
                if q_rank is not None:
                    widths["q_lora_rank", q_rank] = None
            case DeltaConfig(num_v_heads=heads, v_dim=head_dim):
                widths[f"linear_num_value_heads * linear_value_head_dim{share}", heads * head_dim // ranks] = None
            case MambaConfig(inner=inner):
                widths["mamba_n_heads * mamba_d_head", inner] = None
    for layer in model.layers:
        widths[f"{WIDTH_FIELDS[layer.mlp.kind]}{share}", layer.mlp.width // ranks] = None
        if isinstance(layer.mlp, ExpertsConfig) and layer.mlp.shared_width is not None:
            widths[f"{SHARED_WIDTH_FIELD}{share}", layer.mlp.shared_width // ranks] = None
    return list(widths)


def _refusal(backend: Backend, widths: list[tuple[str, int]], dtype: torch.dtype) -> str | None:
    """Why native linear layers of some of those widths do not take weights of ``dtype``; None if all do."""
    for name, width in widths:
        if (why := backend.refuses_weights(width, dtype)) is not None:
            kind = str(dtype).removeprefix("torch.")
            return f"{kind} weights [N, K] with K = {name} = {width} ({why})"
    return None


def _tell_refused(why: str, placement: Placement, config: EngineConfig) -> None:
    """Logs that the model's widths cost it a native format.

    Raises:
        RunnerError: all of them, in strict mode.
    """
    if placement.packed:
        _log.warning("no native linear layer takes %s; weights are kept in %s", why, placement.format.label)
        return
    if config.kernels == Mode.STRICT.value:
        raise RunnerError(f"{config.model_dir}: kernels = 'strict', but no native linear layer takes {why}")
    _log.warning("no native linear layer takes %s; linear layers run in plain torch, many times slower", why)


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
