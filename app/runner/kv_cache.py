"""Pages of a model's layers: what each layer keeps between steps, and its memory."""

from __future__ import annotations

import torch

from app.contract.config import EngineConfig
from app.contract.info import KVCacheSpec
from app.kernels.backend import Backend
from app.kernels.pages import KVPages, LatentPages, Pages, PageShape, StatePages
from app.layers.config import AttentionConfig, LatentConfig, MambaConfig, MixerConfig, ShortConvConfig
from app.models.config import ModelConfig
from app.runner.device import DTYPES
from app.runner.errors import RunnerError

KV_DTYPES = {**DTYPES, "int8": torch.int8}


def kv_cache_dtype(config: EngineConfig) -> str:
    """Name of the dtype of keys and values; ``auto`` is the model's.

    Raises:
        RunnerError: not a dtype that pages can have.
    """
    name = config.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    if name not in KV_DTYPES:
        raise RunnerError(f"kv_cache_dtype = {name!r} is not supported; use auto or one of {', '.join(KV_DTYPES)}")
    return name


def page_shape(mixer: MixerConfig, config: EngineConfig) -> PageShape:
    """Shape of the pages that a rank keeps of a layer with that mixer.

    Args:
        config: with the dtypes chosen (:func:`app.runner.formats.choose_formats`).

    Raises:
        RunnerError: as :func:`kv_cache_dtype`, or latents are to be int8.
    """
    ranks = config.tensor_parallel_size
    if isinstance(mixer, AttentionConfig):
        return KVPages(mixer.num_kv_heads // ranks, mixer.head_dim, KV_DTYPES[kv_cache_dtype(config)])
    if isinstance(mixer, ShortConvConfig):
        return StatePages(
            conv_inputs=mixer.conv_width - 1, channels=mixer.channels // ranks, dtype=DTYPES[config.dtype]
        )
    if isinstance(mixer, LatentConfig):
        dtype = kv_cache_dtype(config)
        if dtype == "int8":
            raise RunnerError("kv_cache_dtype = 'int8' is not supported of latents; use 'auto' or a floating dtype")
        return LatentPages(mixer.width, KV_DTYPES[dtype])  # all of them on every rank
    if isinstance(mixer, MambaConfig):
        return StatePages(
            conv_inputs=mixer.conv_width - 1,
            channels=mixer.channels,
            num_heads=mixer.num_heads,
            k_dim=mixer.state_dim,
            v_dim=mixer.head_dim,
            dtype=DTYPES[config.dtype],
        )
    channels = 2 * mixer.num_k_heads * mixer.k_dim + mixer.num_v_heads * mixer.v_dim
    return StatePages(
        conv_inputs=mixer.conv_width - 1,
        channels=channels // ranks,
        num_heads=mixer.num_v_heads // ranks,
        k_dim=mixer.k_dim,
        v_dim=mixer.v_dim,
        dtype=DTYPES[config.dtype],
    )


def allocate_kv_cache(spec: KVCacheSpec, model: ModelConfig, config: EngineConfig, backend: Backend) -> list[Pages]:
    """Pages of every mixer, in order; see :meth:`app.kernels.backend.Backend.allocate_pages`. One that attends over
    another's pages has those.

    Args:
        spec: as :mod:`app.runner.kv_plan` made it of the same model and config.
    """
    num_blocks = {layer: group.num_blocks for group in spec.groups for layer in group.layers}
    mixers, kept = model.mixers, dict[int, Pages]()
    for index, blocks in num_blocks.items():
        mixer = mixers[index]
        kept[index] = backend.allocate_pages(
            page_shape(mixer, config),
            blocks,
            spec.block_size,
            heads_per_kv=mixer.num_heads // mixer.num_kv_heads if isinstance(mixer, AttentionConfig) else 1,
        )
    return [kept[keeper] for keeper in model.keepers]
