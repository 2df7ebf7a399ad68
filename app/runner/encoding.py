"""Runs batches of whole sequences through an encoder: the tensor side's face to the engine for models that encode.

T tokens of a batch, R sequences, D model width.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.info import KVCacheSpec, RunnerInfo
from app.contract.request import Pooling
from app.contract.step import EncodeBatch, Encoded, EncodeResult, Plan, TokenMasks
from app.kernels import dispatch
from app.kernels.backend import choose_backend
from app.kernels.native.program import Program
from app.kernels.pool import Mode, pool
from app.kernels.recorders import ProgramRecorder
from app.kernels.types import PackedSequences, StepArena
from app.models.architectures import find
from app.models.base import Encoder
from app.models.config import ModelConfig
from app.quant.placement import Placement
from app.runner.adapters import refuse_adapters
from app.runner.device import choose_device, choose_threads, runs_ahead, set_threads
from app.runner.errors import RunnerError
from app.runner.formats import choose_formats
from app.runner.loading import Phases, check_encoder_memory, load_encoder, read_model_config, with_block_types
from app.runner.staging import STEPS_UNDER_WAY, Fetched, Returns, StagedPack

_log = logging.getLogger(__name__)

_MODES = {Pooling.MEAN: Mode.MEAN, Pooling.CLS: Mode.FIRST, Pooling.LAST: Mode.LAST, Pooling.NONE: Mode.MEAN}
_NOT_FINITE = "the result is not finite"


@dataclass(frozen=True, slots=True)
class EncodeHandle:
    """A batch under way."""

    batch: EncodeBatch
    pooled: Fetched
    hidden: Fetched | None
    """Hidden states of all tokens; None if no sequence wants them."""
    replayed: bool
    """Whether the batch ran as one call of a recording."""
    kernel_seconds: float
    """Seconds that the batch's kernels ran; on a GPU, that launching them took."""


class EncodingRunner:
    """One encoder with the buffers of its batches. Implements :class:`app.engine.runner.Runner`.

    On a CPU a batch is computed within :meth:`submit`; :meth:`collect` only makes bytes of the result.
    """

    def __init__(
        self, model: Encoder, model_config: ModelConfig, config: EngineConfig, placement: Placement, max_len: int
    ) -> None:
        """
        Args:
            max_len: tokens of the longest sequence.

        Raises:
            RunnerError: a kernel has no native form, which strict mode wants.
        """
        device = placement.device
        self._model, self._device = model, device
        self._model_config, self._config, self._max_len = model_config, config, max_len
        most = max(config.max_num_batched_tokens, max_len)
        self._arena = StepArena(most, device)
        self._staged = StagedPack(
            [(most, torch.int64), (most, torch.int64), (most, torch.int32), (most + 1, torch.int32)], device
        )
        self._pooled_RD = torch.empty(most, model_config.hidden_size, dtype=torch.float32, device=device)
        self._returns = Returns(device)
        self._hidden_TD: Tensor | None = None
        """Hidden states of a recorded batch, at their address in every replay."""
        self._program: Program | None = None
        if placement.packed:
            self._program = self._record(strict=config.kernels == dispatch.Mode.STRICT.value)

    @cached_property
    def info(self) -> RunnerInfo:
        """Facts about the model."""
        weights = self._model.destinations().values()
        return RunnerInfo(
            max_model_len=0,
            vocab_size=self._model_config.vocab_size,
            num_parameters=sum(weight.numel() for weight in weights),
            weight_bytes=sum(weight.nbytes for weight in weights),
            kv_cache=KVCacheSpec(block_size=self._config.block_size, groups=[]),
            kv_cache_bytes=0,
            dtype=self._config.dtype,
            quantization=self._config.quantization,
            kernels=self._kernels(),
            device=self._config.device,
            pipeline_depth=STEPS_UNDER_WAY if runs_ahead(self._device) else 1,
            tasks=find(self._model_config.architecture).tasks,
            max_encode_len=self._max_len,
        )

    def _kernels(self) -> str:
        if choose_backend(self._pooled_RD.device).pads_steps:
            return "triton"
        return "torch" if self._program is None else self._program.isa

    def submit(self, plan: Plan, masks: TokenMasks | None = None) -> EncodeHandle:  # noqa: ARG002 - nothing is sampled
        """Starts a batch.

        Raises:
            RunnerError: it is no batch to encode, or does not fit the buffers.
        """
        if not isinstance(plan, EncodeBatch):
            raise RunnerError("this model does not generate")
        tokens, sequences = plan.num_tokens, plan.num_sequences
        if tokens > self._arena.max_rows:
            raise RunnerError(f"a batch of {tokens} tokens does not fit buffers of {self._arena.max_rows}")
        self._fill(plan)
        with torch.inference_mode():
            self._staged.upload(sequences + 1)
            started = time.perf_counter()
            if self._program is not None and self._hidden_TD is not None:
                self._program.run(tokens=tokens, rows=sequences)
                hidden_TD = self._hidden_TD[:tokens]
            else:
                hidden_TD = self._compute(tokens, sequences)
            seconds = time.perf_counter() - started
            pooled = self._returns.snapshot(self._pooled_RD[:sequences])
            hidden = self._returns.snapshot(hidden_TD.float()) if Pooling.NONE in plan.pooling else None
        return EncodeHandle(plan, pooled, hidden, self._program is not None, seconds)

    def collect(self, handle: EncodeHandle) -> EncodeResult:
        """Waits for a batch's result."""
        batch = handle.batch
        (pooled_RD,) = handle.pooled.arrays()
        hidden_TD = None if handle.hidden is None else handle.hidden.arrays()[0]
        sequences = []
        for row, (start, end) in enumerate(itertools.pairwise(batch.bounds)):
            values = pooled_RD[row]
            if hidden_TD is not None and batch.pooling[row] is Pooling.NONE:
                values = hidden_TD[start:end]
                if batch.normalize[row]:
                    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            sequences.append(_encoded(values))
        return EncodeResult(sequences=sequences, replayed=handle.replayed, kernel_seconds=handle.kernel_seconds)

    def _fill(self, batch: EncodeBatch) -> None:
        token_ids, positions, modes, bounds = (buffer.array for buffer in self._staged.buffers)
        tokens, sequences = batch.num_tokens, batch.num_sequences
        token_ids[:tokens] = batch.token_ids
        bounds[: sequences + 1] = batch.bounds
        starts = np.repeat(bounds[:sequences], np.diff(bounds[: sequences + 1]))
        positions[:tokens] = np.arange(tokens) - starts
        modes[:sequences] = [
            _MODES[pooling] | (Mode.NORMALIZE if normalize else Mode(0))
            for pooling, normalize in zip(batch.pooling, batch.normalize, strict=True)
        ]

    def _compute(self, tokens: int, sequences: int) -> Tensor:
        """Runs all kernels of a batch over the staged buffers; returns the hidden states [T, D]."""
        token_ids, positions, modes, bounds = self._staged.buffers
        packed = PackedSequences(bounds.view(sequences + 1))
        self._arena.begin(tokens)
        hidden_TD = self._model.encode(token_ids.view(tokens), positions.view(tokens), packed, self._arena)
        pool(hidden_TD, packed, modes.view(sequences), self._pooled_RD[:sequences])
        return hidden_TD

    @torch.inference_mode()
    def _record(self, *, strict: bool) -> Program | None:
        """A recording of a batch, for batches of any size; None where a kernel has no native form."""
        most = self._arena.max_rows
        try:
            return ProgramRecorder().record(lambda: self._compute_whole(most))
        except dispatch.FallbackError as error:
            if strict:
                raise RunnerError(str(error)) from None
            _log.info("batches are not recorded: %s", error)
            return None

    def _compute_whole(self, most: int) -> None:
        self._hidden_TD = self._compute(most, most)


def _encoded(values: NDArray[Any]) -> Encoded:
    if not np.isfinite(values).all():
        return Encoded(error=_NOT_FINITE)
    return Encoded(shape=values.shape, data=values.astype("<f4", copy=False).tobytes())


def make_encoding_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> EncodingRunner:
    """Loads a whole encoder and makes it ready for its first batch.

    Args:
        progress: told of the phases ``config``, ``weights`` (in bytes) and ``warmup``.

    Raises:
        ConfigError: the model's config.json is missing, malformed or not supported.
        WeightError: the weights do not fit the config, or cannot be read.
        RunnerError: the device, dtype or memory asked for is not there.
    """
    if config.tensor_parallel_size > 1:
        raise RunnerError(f"tensor_parallel_size = {config.tensor_parallel_size}: an encoder runs on one rank")
    refuse_adapters(config, "an encoder")
    phases = Phases(progress)
    phases.begin("config")
    model_config = read_model_config(Path(config.model_dir), [Path(file) for file in config.weights])
    asked, context = config.max_model_len, model_config.context_length
    if asked is not None and not 0 < asked <= context:
        raise RunnerError(f"max_model_len = {asked} is outside the model's context of {context} tokens")
    max_len = asked or context
    device = choose_device(config.device)
    threads = choose_threads(config.threads)
    set_threads(threads)
    dispatch.configure(dispatch.Mode(config.kernels), threads)
    config, placement = choose_formats(config, choose_backend(device), model_config)
    placement = with_block_types(placement, config, model_config)
    check_encoder_memory(model_config, placement)
    phases.begin("weights")
    model = load_encoder(model_config, config, max_positions=max_len, placement=placement, progress=phases.update)
    phases.begin("warmup")
    runner = EncodingRunner(model, model_config, config, placement, max_len)
    batch = EncodeBatch(step=0, token_ids=[0], bounds=[0, 1], pooling=[Pooling.MEAN], normalize=[True])
    runner.collect(runner.submit(batch))
    phases.update(1, 1)
    return runner
