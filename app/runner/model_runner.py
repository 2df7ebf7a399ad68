"""Executes scheduler outputs on a model: the tensor side's face to the engine."""

from __future__ import annotations

import ctypes
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from app.kernels import dispatch
from app.kernels.paged_attention.splits import new_split_workspace
from app.kernels.types import PackedWeight, StepArena
from app.models.base import Decoder
from app.models.config import ModelConfig
from app.runner.device import runs_ahead
from app.runner.errors import RunnerError
from app.runner.graph import Bucket, BucketGraphs, StepGraphs, capture_on, graph_bytes
from app.runner.input_batch import InputBatch, StepExtent, StepInputs
from app.runner.kv_cache import allocate_kv_cache
from app.runner.kv_plan import KVCachePlan
from app.runner.memory import Footprint, bytes_of
from app.runner.page_populator import PagePopulator
from app.runner.pending_sample import PendingSample
from app.runner.sampler import SampleParts, Sampler, StagedSamples
from app.runner.staging import STEPS_UNDER_WAY
from app.types import (
    EncodeBatch,
    EngineConfig,
    RowOutput,
    RunnerInfo,
    SchedulerOutput,
    StepPlan,
    StepResult,
)

_log = logging.getLogger(__name__)

_PADDED = SampleParts(top_k=True, top_p=True, min_p=True, penalties=False, min_tokens=False, logit_bias=False)
"""What sampling a bucket's graph has: what costs nothing where a row does without."""
_PLAIN = SampleParts(top_k=False, top_p=False, min_p=False, penalties=False, min_tokens=False, logit_bias=False)


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A step under way."""

    pending: PendingSample | None
    """None: no token of the step needed logits."""
    num_rows: int
    replayed: bool
    kernel_seconds: float


class ModelRunner:
    """One model, or one rank's share of it, with its KV cache and its slots. Made by :mod:`app.runner.start`.

    Every rank of a tensor-parallel model runs the same steps and comes to the same tokens.
    On a CPU a step is computed within :meth:`submit`; :meth:`collect` only reads the result.
    """

    def __init__(
        self,
        model: Decoder,
        model_config: ModelConfig,
        plan: KVCachePlan,
        config: EngineConfig,
        device: torch.device,
    ) -> None:
        self._model = model
        self._config = config
        self._plan = plan
        self._vocab_size = model_config.vocab_size
        max_logit_rows = min(config.max_logit_rows, config.max_num_batched_tokens)
        self._arena = StepArena(config.max_num_batched_tokens, device, max_logit_rows)
        self._logits_LV = torch.empty(max_logit_rows, self._vocab_size, dtype=torch.float32, device=device)
        on_triton = dispatch.runs_triton(self._logits_LV)
        groups = plan.spec.groups
        heads_per_kv = max(attention.num_heads // attention.num_kv_heads for attention in model_config.attentions)
        self._kv = allocate_kv_cache(plan.spec, device, heads_per_kv=heads_per_kv, trash=on_triton)
        self._group_of_layer = [index for _, index in sorted((i, n) for n, g in enumerate(groups) for i in g.layers)]
        self._populators = [
            PagePopulator([self._kv[layer].values for layer in group.layers])
            for group in (groups if device.type == "cpu" else [])
        ]
        self._sampler = Sampler(config.max_num_seqs, self._vocab_size, device, on_triton=on_triton)
        self._batch = InputBatch(
            groups,
            num_slots=config.max_num_seqs,
            max_tokens=config.max_num_batched_tokens,
            max_logit_rows=max_logit_rows,
            max_model_len=plan.max_model_len,
            block_size=config.block_size,
            device=device,
            split_workspace=_split_workspace(model_config, config, device) if on_triton else None,
            trash=on_triton,
        )
        native = device.type == "cpu" and isinstance(model.lm_head.weight, PackedWeight)
        # A recording would run through where the ranks have to meet.
        self._graphs = self._capture(config) if native and config.tensor_parallel_size == 1 else None
        self._bucket_graphs: BucketGraphs | None = None
        self._graph_bytes = 0
        if on_triton and not config.enforce_eager:
            sizes = {
                "max_rows": min(config.max_num_seqs, max_logit_rows),
                "max_tokens": config.max_num_batched_tokens,
            }
            self._graph_bytes = graph_bytes(model_config.num_layers, **sizes)
            capture = capture_on(device)
            if capture is not None:
                self._bucket_graphs = BucketGraphs(
                    self._compute_bucket, capture, max_seq_len=plan.max_model_len, **sizes
                )

    def _capture(self, config: EngineConfig) -> StepGraphs | None:
        """Recordings of a step, if all its kernels have a native form."""
        graphs = StepGraphs(self._compute_whole)
        try:
            graphs.capture(_PLAIN.recordable())
        except dispatch.FallbackError as error:
            if config.kernels == dispatch.Mode.STRICT.value:
                raise RunnerError(str(error)) from None
            _log.info("steps are not recorded: %s", error)
            return None
        return graphs

    @torch.inference_mode()
    def _compute_whole(self, parts: Any) -> None:
        """A step over the buffers at their full size: only to be recorded."""
        self._arena.begin(self._arena.max_rows)
        self._compute(self._batch.whole(), self._logits_LV, self._sampler.max_samples, parts)

    @torch.inference_mode()
    def _compute_bucket(self, bucket: Bucket) -> None:
        """A step of a bucket's size over the buffers on the device."""
        rows = bucket.rows
        self._arena.begin(bucket.tokens)
        extent = StepExtent(bucket.max_query_len, self._plan.max_model_len)
        self._compute(self._batch.views(bucket.tokens, rows, rows, extent), self._logits_LV[:rows], rows, _PADDED)

    def _compute(self, inputs: StepInputs, logits_LV: Tensor, num_samples: int, parts: SampleParts) -> None:
        """All kernels of a step."""
        self._batch.expand(inputs, self._sampler.last_token)
        tokens = inputs.tokens
        metas = [inputs.metas[group] for group in self._group_of_layer]
        hidden_TD = self._model.forward(tokens.token_ids, tokens.positions, self._kv, metas, self._arena)
        if logits_LV.shape[0]:
            self._model.logits(hidden_TD, tokens.logit_indices, logits_LV, self._arena)
        if num_samples:
            self._sampler.launch(logits_LV, num_samples, parts)

    @cached_property
    def info(self) -> RunnerInfo:
        """Facts about the model; bytes are those of this rank."""
        weights = self._model.destinations().values()
        return RunnerInfo(
            max_model_len=self._plan.max_model_len,
            vocab_size=self._vocab_size,
            num_parameters=sum(weight.numel() for weight in weights),
            weight_bytes=sum(weight.nbytes for weight in weights),
            kv_cache=self._plan.spec,
            kv_cache_bytes=self._plan.nbytes,
            dtype=self._config.dtype,
            quantization=self._config.quantization,
            kernels=self._kernels(),
            device=self._config.device,
            pipeline_depth=STEPS_UNDER_WAY if runs_ahead(self._logits_LV.device) else 1,
        )

    def _kernels(self) -> str:
        if dispatch.runs_triton(self._logits_LV):
            return "triton"
        return dispatch.isa() if isinstance(self._model.lm_head.weight, PackedWeight) else "torch"

    def footprint(self) -> Footprint:
        """What it holds beside its pages."""
        device = self._logits_LV.device
        self._arena.begin(self._arena.max_rows)
        self._model.reserve(self._arena)
        return Footprint(
            weights=bytes_of(self._model, device),
            activations=self._arena.nbytes(),
            logits=self._logits_LV.nbytes,
            sampling=bytes_of(self._sampler, device) + self._sampler.on_demand_bytes,
            inputs=bytes_of(self._batch, device),
            graphs=self._graph_bytes,
        )

    def submit(self, step: StepPlan) -> StepHandle:
        """Starts a step of at least one row.

        Raises:
            RunnerError: the step does not fit the buffers. Its slots must be bound anew, as after any exception.
        """
        if isinstance(step, EncodeBatch):
            raise RunnerError("this model does not encode")
        for index, populator in enumerate(self._populators):
            populator.note(
                max((max(row.new_block_ids[index], default=0) for row in step.rows if row.new_block_ids), default=0)
            )
        self._sampler.bind(step.slots)
        staged = self._sampler.stage(step.rows)
        if self._graphs is not None:
            replayed, seconds = True, self._replay(self._graphs, step, staged)
        elif self._bucket_graphs is not None and (bucket := self._bucket(self._bucket_graphs, step, staged)):
            replayed, seconds = self._run_bucket(self._bucket_graphs, bucket, step, staged)
        else:
            replayed, seconds = False, self._compute_eagerly(step, staged)
        pending = self._sampler.finish(self._logits_LV, staged) if step.num_logit_rows else None
        return StepHandle(pending, len(step.rows), replayed=replayed, kernel_seconds=seconds)

    def _bucket(self, graphs: BucketGraphs, step: SchedulerOutput, staged: StagedSamples) -> Bucket | None:
        """Which graph the step is one for, if any: each sampled row has one row of logits, and nothing special."""
        rows, samples, parts = len(step.rows), len(staged.sampled), staged.parts
        if step.num_logit_rows != samples or parts.penalties or parts.min_tokens or parts.logit_bias:
            return None
        if step.num_tokens == samples == rows:
            return graphs.decodes(rows)
        return graphs.mixed(step.num_tokens, rows)

    def _run_bucket(
        self, graphs: BucketGraphs, bucket: Bucket, step: SchedulerOutput, staged: StagedSamples
    ) -> tuple[bool, float]:
        """Computes a step, padded; returns whether as one recording, and the seconds that launching took."""
        self._batch.fill(step, bucket)
        self._sampler.pad(len(staged.sampled), bucket.rows)
        with torch.inference_mode():
            self._batch.upload()
            self._sampler.upload()
        started = time.perf_counter()
        replayed = graphs.run(bucket)
        return replayed, time.perf_counter() - started

    def _replay(self, graphs: StepGraphs, step: SchedulerOutput, staged: StagedSamples) -> float:
        """Computes the step by its recording, and returns the seconds that this took."""
        extent = self._batch.fill(step)
        program = graphs.capture(staged.recordable)
        started = time.perf_counter()
        program.run(
            tokens=step.num_tokens,
            rows=len(step.rows),
            logits=step.num_logit_rows,
            samples=len(staged.sampled),
            max_seq_len=extent.max_seq_len,
            max_query_len=extent.max_query_len,
            op_ns=graphs.op_ns,
        )
        return time.perf_counter() - started

    @torch.inference_mode()
    def _compute_eagerly(self, step: SchedulerOutput, staged: StagedSamples) -> float:
        """Computes the step op by op, and returns the seconds that this took (on a GPU: to launch it)."""
        inputs = self._batch.prepare(step)
        self._sampler.upload()
        started = time.perf_counter()
        self._arena.begin(step.num_tokens)
        self._compute(inputs, self._logits_LV[: step.num_logit_rows], len(staged.sampled), staged.parts)
        return time.perf_counter() - started

    def profile_ops(self) -> tuple[list[str], ctypes.Array[ctypes.c_uint64]]:
        """Names of the recorded ops of a step without penalties, and the nanoseconds that each takes from here on.

        Raises:
            RunnerError: steps are not recorded here.
        """
        if self._graphs is None:
            raise RunnerError("steps of this model are not recorded here")
        return self._graphs.profile(_PLAIN.recordable())

    def collect(self, handle: StepHandle) -> StepResult:
        """Waits for a step's result, one output a row."""
        rows = handle.pending.result() if handle.pending else [RowOutput() for _ in range(handle.num_rows)]
        return StepResult(rows=rows, replayed=handle.replayed, kernel_seconds=handle.kernel_seconds)


def _split_workspace(model: ModelConfig, config: EngineConfig, device: torch.device) -> Tensor:
    """Where pieces of attention meet: room for whichever layer needs most."""
    ranks = config.tensor_parallel_size
    shapes = {(layer.num_heads // ranks, layer.num_kv_heads // ranks, layer.head_dim) for layer in model.attentions}
    return max((new_split_workspace(config.max_num_seqs, *shape, device) for shape in shapes), key=Tensor.numel)
