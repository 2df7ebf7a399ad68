"""Loads a model: reads its config, checks that memory suffices, fills its weights, and reports progress."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from app.checkpoints.dummy import fill_dummy_weights
from app.checkpoints.fp8 import FP8
from app.checkpoints.loader import iter_weights, load_weights
from app.checkpoints.tied_head import ties_head
from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.kernels.blocks.layout import LAYOUT as BLOCK_LAYOUT
from app.models.architectures import find, parse_config
from app.models.base import Decoder, Encoder, Model
from app.models.config import AttentionConfig, ConfigError, ExpertsConfig, LatentConfig, ModelConfig, ShortConvConfig
from app.models.names import StoredParts
from app.models.quantization import Fp8Scales
from app.quant.cache import PackedCache
from app.quant.placement import Placement
from app.quant.stored_blocks import declare_blocks
from app.runner.device import META, available_memory
from app.runner.errors import RunnerError
from app.runner.formats import SHARED_WIDTH_FIELD, WIDTH_FIELDS
from app.runner.kv_plan import KVCachePlan

Progress = Callable[[LoadProgress], None]

_log = logging.getLogger(__name__)

_REPORT_INTERVAL = 0.1
"""Seconds between two reports: a model has hundreds of tensors, and nobody reads hundreds of lines."""


def read_model_config(model_dir: Path, weights: Sequence[Path] = ()) -> ModelConfig:
    """Parses ``config.json`` of a model directory.

    Args:
        weights: the model's files, which have the last word on whether the output head is the embedding.

    Raises:
        ConfigError: missing, not JSON, or not supported; names the file.
        WeightError: a weight file is unreadable, truncated or malformed.
    """
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a JSON object")
    try:
        model = parse_config(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if config.get("vision_config"):
        _log.warning("%s: only the text part of %s is served, images are not", path, model.architecture)
    tied = ties_head(model.tie_word_embeddings, weights, find(model.architecture).names.checkpoint)
    return msgspec.structs.replace(model, tie_word_embeddings=tied)


class Phases:
    """Reports the progress of loading; the seconds of each phase count from its beginning."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phase = ""
        self._began = 0.0
        self._reported = 0.0

    def begin(self, phase: str) -> None:
        """Starts a phase whose length is not known yet."""
        self._phase, self._began = phase, time.monotonic()
        self._report(0, 0)

    def update(self, done: int, total: int) -> None:
        """Reports how far the phase has come, in units of its own. Reports that follow too closely are left out."""
        if done >= total or time.monotonic() - self._reported >= _REPORT_INTERVAL:
            self._report(done, total)

    def _report(self, done: int, total: int) -> None:
        self._reported = time.monotonic()
        seconds = self._reported - self._began
        self._progress(LoadProgress(phase=self._phase, done=done, total=total, seconds=seconds))


def decoder_bytes(model_config: ModelConfig, placement: Placement) -> int:
    """Bytes of the weights that a rank has of a model that generates, from shapes alone."""
    sizes = build_model(model_config, 1, replace(placement, device=META)).destinations().values()
    return sum(weight.nbytes for weight in sizes)


def encoder_bytes(model_config: ModelConfig, placement: Placement) -> int:
    """Bytes of the weights of a model that encodes, from shapes alone."""
    sizes = build_encoder(model_config, 1, replace(placement, device=META)).destinations().values()
    return sum(weight.nbytes for weight in sizes)


def check_memory(model_config: ModelConfig, plan: KVCachePlan, placement: Placement, *, tier_bytes: int) -> None:
    """Checks that weights and KV cache fit before either is filled.

    A CPU's pages take memory only as they are written: what does not fit would end in a kill, under load.

    Args:
        tier_bytes: bytes that the prefix cache will take of a CPU's memory besides.

    Raises:
        RunnerError: they do not fit.
    """
    weight_bytes, kv_bytes = decoder_bytes(model_config, placement), plan.nbytes
    if placement.device.type == "cpu":  # whose memory all ranks share
        weight_bytes, kv_bytes = weight_bytes * placement.ranks.size, kv_bytes * placement.ranks.size
    else:
        tier_bytes = 0
    available = available_memory(placement.device)
    if weight_bytes + kv_bytes + tier_bytes > available:
        tier = f" with prefix_cache_ram of {tier_bytes} bytes" if tier_bytes else ""
        raise RunnerError(
            f"weights of {weight_bytes} bytes and a KV cache of {kv_bytes} bytes{tier} do not fit into the {available} "
            f"bytes available; lower kv_cache_memory{' or prefix_cache_ram' if tier else ''}, or dtype to bfloat16"
        )


def check_encoder_memory(model_config: ModelConfig, placement: Placement) -> None:
    """Checks that an encoder's weights fit before they are filled.

    Raises:
        RunnerError: they do not fit.
    """
    weight_bytes, available = encoder_bytes(model_config, placement), available_memory(placement.device)
    if weight_bytes > available:
        raise RunnerError(f"weights of {weight_bytes} bytes do not fit into the {available} bytes available")


def check_shares(model: ModelConfig, ranks: int) -> None:
    """Checks that so many ranks can share a model.

    Raises:
        RunnerError: they cannot; the message lists the numbers of ranks that can.
    """
    sizes: dict[tuple[str, int], None] = {}
    for mixer, mlp in dict.fromkeys((mixer, layer.mlp) for layer in model.layers for mixer in layer.mixers):
        if isinstance(mixer, AttentionConfig) and (ranks == 1 or not mixer.qk_norm_whole):
            sizes["num_attention_heads", mixer.num_heads] = None
            sizes["num_key_value_heads", mixer.num_kv_heads] = None
        elif isinstance(mixer, LatentConfig):
            sizes["num_attention_heads", mixer.num_heads] = None
        elif isinstance(mixer, ShortConvConfig):
            sizes["hidden_size", mixer.channels] = None
        elif ranks > 1:
            raise RunnerError(f"tensor_parallel_size = {ranks}: ranks cannot share the layers of {model.architecture}")
        sizes[WIDTH_FIELDS[mlp.kind], mlp.width] = None
        if isinstance(mlp, ExpertsConfig) and mlp.shared_width is not None:
            sizes[SHARED_WIDTH_FIELD, mlp.shared_width] = None
    uneven = [f"{name} = {size}" for name, size in sizes if size % ranks]
    if uneven:
        common = math.gcd(*(size for _, size in sizes))
        fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        raise RunnerError(
            f"tensor_parallel_size = {ranks} does not divide the model's {' and '.join(uneven)}; use one of {fitting}"
        )
    if -(-model.vocab_size // ranks) * (ranks - 1) >= model.vocab_size:
        raise RunnerError(f"tensor_parallel_size = {ranks} is too many for a vocabulary of {model.vocab_size}")


def load_model(
    model_config: ModelConfig,
    config: EngineConfig,
    *,
    max_positions: int,
    placement: Placement,
    progress: Callable[[int, int], None],
) -> Decoder:
    """Builds a model and fills its weights, from files or with noise.

    Args:
        progress: called with bytes done and in all.

    Raises:
        WeightError: the weights do not fit the config, or cannot be read.
        RunnerError: unknown ``load_format``.
    """
    with _one_thread() if placement.packed else contextlib.nullcontext():
        model = build_model(model_config, max_positions, placement)
        stacks = find(model_config.architecture).names.checkpoint.stacks
        _fill(model, config, placement, progress, stacks, model_config.fp8)
    return model


def load_encoder(
    model_config: ModelConfig,
    config: EngineConfig,
    *,
    max_positions: int,
    placement: Placement,
    progress: Callable[[int, int], None],
) -> Encoder:
    """Builds a model that encodes and fills its weights; arguments and errors are those of :func:`load_model`."""
    with _one_thread() if placement.packed else contextlib.nullcontext():
        model = build_encoder(model_config, max_positions, placement)
        _fill(model, config, placement, progress, {}, model_config.fp8)
    return model


def _fill(
    model: Model,
    config: EngineConfig,
    placement: Placement,
    progress: Callable[[int, int], None],
    stacks: Mapping[str, StoredParts],
    fp8: Fp8Scales | None,
) -> None:
    match config.load_format:
        case "auto":
            _load(model, config, placement, progress, stacks, fp8)
        case "dummy":
            fill_dummy_weights(model.destinations(), config.seed, placement.device)
        case other:
            raise RunnerError(f"load_format = {other!r} is not supported; use 'auto' or 'dummy'")


def _load(
    model: Model,
    config: EngineConfig,
    placement: Placement,
    progress: Callable[[int, int], None],
    stacks: Mapping[str, StoredParts],
    fp8: Fp8Scales | None,
) -> None:
    files, destinations = [Path(file) for file in config.weights], model.destinations()
    cache = None
    if placement.packed and config.packed_cache is not None:
        name, ranks = placement.format.label, placement.ranks
        if placement.keeps_blocks:
            name += f", {BLOCK_LAYOUT}"
        if ranks.size > 1:
            name += f", rank {ranks.rank} of {ranks.size}"
        if fp8 is not None:
            name += f", {fp8.label}"
        cache = PackedCache(Path(config.packed_cache), files, name)
        total = sum(weight.nbytes for weight in destinations.values())
        progress(0, total)
        if cache.restore(destinations):
            progress(total, total)
            if fp8 is not None:
                _say_packings([FP8], placement)
            return
    packings = load_weights(
        destinations, files, ignore=model.ignores, twins=model.twins(), stacks=stacks, fp8=fp8, progress=progress
    )
    _say_packings(packings, placement)
    if cache is not None:
        cache.save(destinations)


def _say_packings(packings: Sequence[str], placement: Placement) -> None:
    if packings:
        served = placement.converts_to
        _log.info("weights that are stored as %s are served as %s", ", ".join(packings), served)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A context in which torch runs on the calling thread alone.

    Packing is thousands of short operations: on a machine with other work, waiting for torch's second thread at each of
    them took 40 times as long as running without it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build_model(model_config: ModelConfig, max_positions: int, placement: Placement) -> Decoder:
    """The model, its weights uninitialised; on the meta device it has shapes alone."""
    model = find(model_config.architecture).build(model_config, max_positions=max_positions, placement=placement)
    declare_blocks(model.destinations(), model.twins(), placement.block_types)
    return model


def build_encoder(model_config: ModelConfig, max_positions: int, placement: Placement) -> Encoder:
    """A model that encodes, its weights uninitialised; on the meta device it has shapes alone."""
    build = find(model_config.architecture).build_encoder
    model = build(model_config, max_positions=max_positions, placement=placement)
    declare_blocks(model.destinations(), model.twins(), placement.block_types)
    return model


def with_block_types(placement: Placement, config: EngineConfig, model_config: ModelConfig) -> Placement:
    """The placement that knows in which blocks the checkpoint's tensors are stored, where weights are kept so.

    Raises:
        RunnerError: none is, or several ranks share the model.
        WeightError: a weight file is unreadable, truncated or malformed.
    """
    if not placement.keeps_blocks or config.load_format != "auto":
        return placement
    setting = f"quantization = {config.quantization!r}"
    if config.tensor_parallel_size > 1:
        raise RunnerError(f"{setting}: blocks of files are kept on one rank; use 'int8'")
    files, stacks = [Path(file) for file in config.weights], find(model_config.architecture).names.checkpoint.stacks
    listed = iter_weights(files, stacks, model_config.fp8)
    types = {stored.name: stored.packing for stored in listed if stored.blocks is not None and stored.packing}
    if not types:
        raise RunnerError(f"{setting} keeps the blocks of quantised GGUF files, of which {config.model_dir} has none")
    return replace(placement, block_types=types)
