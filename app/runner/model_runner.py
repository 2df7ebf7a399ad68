"""Runs step plans on a decoder: the tensor side's face to the engine for models that generate."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from app.checkpoints.adapter import load_adapter, room_of
from app.contract.config import EngineConfig
from app.contract.info import RunnerInfo
from app.contract.step import EncodeBatch, Plan, RowOutput, StepResult, TokenMasks
from app.kernels.backend import Backend
from app.kernels.types import StepArena
from app.models.base import Decoder
from app.models.config import ModelConfig
from app.runner.block_mover import BlockMover, Records
from app.runner.device import runs_ahead
from app.runner.errors import RunnerError
from app.runner.execution.base import Executor
from app.runner.execution.choose import choose_executor
from app.runner.execution.eager import EagerExecutor
from app.runner.execution.step import StepKernels
from app.runner.input_batch import InputBatch
from app.runner.kv_cache import allocate_kv_cache
from app.runner.kv_plan import KVCachePlan
from app.runner.masks import sent_masks
from app.runner.memory import Footprint, bytes_of
from app.runner.page_populator import PagePopulator
from app.runner.pending_sample import PendingSample
from app.runner.sampler import Sampler
from app.runner.snapshot import RunnerSnapshot, take_snapshot
from app.runner.staging import STEPS_UNDER_WAY


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A step under way."""

    pending: PendingSample | None
    """The step's samples on their way from the device; None: no token of the step needed logits."""
    num_rows: int
    """Rows of the step."""
    replayed: bool
    """Whether the step ran as one call of a recording."""
    kernel_seconds: float
    """Seconds that the step's kernels ran; on a GPU, that launching them took."""

    def result(self) -> StepResult:
        """Waits for the step's result, one output a row."""
        rows = self.pending.result() if self.pending else [RowOutput() for _ in range(self.num_rows)]
        return StepResult(rows=rows, replayed=self.replayed, kernel_seconds=self.kernel_seconds)


class ModelRunner:
    """One model, or one rank's share of it, with its KV cache and its slots. Made by :mod:`app.runner.start`.

    Every rank of a tensor-parallel model runs the same steps and comes to the same tokens.
    On a CPU a step is computed within :meth:`submit`; :meth:`collect` only reads the result.
    """

    def __init__(
        self, model: Decoder, model_config: ModelConfig, plan: KVCachePlan, config: EngineConfig, backend: Backend
    ) -> None:
        self._model = model
        self._config = config
        self._plan = plan
        self._model_config = model_config
        self._backend = backend
        self._adapters = None if config.max_adapters == 0 else room_of(model.destinations())
        self._vocab_size, self._keepers = model_config.vocab_size, model_config.keepers
        # A GPU attends for rows of several tokens by other products than for decodes: texts would depend on drafts.
        self._verifies_drafts = config.draft != "none" and backend.device.type == "cpu"
        groups, device = plan.spec.groups, backend.device
        max_logit_rows = min(config.max_logit_rows, config.max_num_batched_tokens)
        self._arena = StepArena(config.max_num_batched_tokens, device, max_logit_rows)
        self._logits_LV = torch.empty(max_logit_rows, self._vocab_size, dtype=torch.float32, device=device)
        self._pages = allocate_kv_cache(plan.spec, model_config, config, backend)
        self._populators = [
            PagePopulator([self._pages[layer].largest for layer in group.layers])
            for group in (groups if device.type == "cpu" else [])
        ]
        self._sampler = Sampler(
            config.max_num_seqs,
            self._vocab_size,
            device,
            max_samples=max_logit_rows if self._verifies_drafts else 0,
            workspace=backend.sample_workspace(config.max_num_seqs, self._vocab_size),
            padded=backend.pads_steps,
        )
        ranks = config.tensor_parallel_size
        shapes = {(a.num_heads // ranks, a.num_kv_heads // ranks, a.head_dim) for a in model_config.attentions}
        shapes |= {(latent.num_heads // ranks, 1, latent.kv_rank) for latent in model_config.latents}
        self._batch = InputBatch(
            groups,
            num_slots=config.max_num_seqs,
            max_tokens=config.max_num_batched_tokens,
            max_logit_rows=max_logit_rows,
            max_model_len=plan.max_model_len,
            block_size=config.block_size,
            device=device,
            split_workspace=backend.split_workspace(config.max_num_seqs, shapes),
            trash=backend.pads_steps,
            adapters=self._adapters is not None,
        )
        if self._adapters is not None and self._batch.token_adapters is not None:
            self._adapters.token_slots, self._adapters.token_order = self._batch.token_adapters
        self._executor: Executor = choose_executor(
            self._step_kernels(self._arena),
            backend.recorder(model.lm_head.weight),
            config,
            num_layers=len(model_config.mixers),  # of two mixers a layer has twice as many kernels
            max_model_len=plan.max_model_len,
        )

    def _step_kernels(self, arena: StepArena) -> StepKernels:
        group_of = {layer: n for n, group in enumerate(self._plan.spec.groups) for layer in group.layers}
        return StepKernels(
            self._model,
            self._pages,
            [group_of[keeper] for keeper in self._keepers],
            batch=self._batch,
            sampler=self._sampler,
            arena=arena,
            logits_LV=self._logits_LV,
        )

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
            kernels=self._backend.name(self._model.lm_head.weight),
            device=self._config.device,
            pipeline_depth=STEPS_UNDER_WAY if runs_ahead(self._backend.device) else 1,
            verifies_drafts=self._verifies_drafts,
        )

    def footprint(self) -> Footprint:
        """Bytes that the runner holds beside its pages."""
        device = self._backend.device
        padding = self._backend.pads_steps * sum(group.bytes_per_block for group in self._plan.spec.groups)
        self._arena.begin(self._arena.max_rows)
        self._model.reserve(self._arena)
        return Footprint(
            weights=bytes_of(self._model, device),
            activations=self._arena.nbytes(),
            logits=self._logits_LV.nbytes,
            sampling=bytes_of(self._sampler, device) + self._sampler.on_demand_bytes,
            inputs=bytes_of(self._batch, device) + padding,
            graphs=self._executor.nbytes,
        )

    def submit(self, step: Plan, masks: TokenMasks | None = None) -> StepHandle:
        """Starts a step of at least one row.

        Args:
            masks: masks of its samples; None: those that came with the plan.

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
        masks = masks or sent_masks(step)
        staged = self._sampler.stage(step.rows, masks)
        executed = self._executor.run(step, staged, masks)
        pending = self._sampler.finish(self._logits_LV, staged) if step.num_logit_rows else None
        return StepHandle(pending, len(step.rows), executed.replayed, executed.kernel_seconds)

    def collect(self, handle: StepHandle) -> StepResult:
        """Waits for a step's result, one output a row."""
        return handle.result()

    def load_adapter(self, slot: int, path: str) -> None:
        """Reads an adapter's directory into a slot that no row of a step has. Any thread may call it.

        Raises:
            AdapterError: it does not fit the model, asks for what is not served, or cannot be read.
        """
        load_adapter(Path(path), self._model.destinations(), self._model.twins(), slot)

    @property
    def page_layout(self) -> str:
        """What copies of blocks mean: of which computation they are, and how its results lie in pages."""
        # Rotary angles may depend on the longest sequence that is served.
        return repr((self._model_config, self._plan.max_model_len, self._mover.layout))

    def read_blocks(self, group: int, block_ids: Sequence[int]) -> Records:
        """Begins to copy blocks of a KV cache group, as they are after all that was submitted."""
        return self._mover.read(group, block_ids)

    def write_blocks(self, group: int, block_ids: Sequence[int], records: Sequence[bytes]) -> None:
        """Fills blocks of a KV cache group, before whatever is submitted next."""
        if group < len(self._populators):
            self._populators[group].note(max(block_ids))
        self._mover.write(group, block_ids, records)

    @cached_property
    def _mover(self) -> BlockMover:
        return BlockMover(self._plan.spec, self._pages, self._backend.device)

    def profile_ops(self) -> tuple[list[str], ctypes.Array[ctypes.c_uint64]]:
        """Names of the recorded ops of a step without penalties, and the nanoseconds that each takes from here on.

        Raises:
            RunnerError: steps are not recorded here.
        """
        return self._executor.profile_ops()

    def snapshot(self) -> RunnerSnapshot:
        """A copy on the host of what slots and pages hold, once the steps under way have been computed."""
        return take_snapshot(self._plan.spec, self._pages, self._batch, self._sampler)

    def run_eagerly(self) -> None:
        """Runs every step op by op from here on, in buffers of its own: what recorded steps are compared with."""
        arena = StepArena(self._arena.max_rows, self._backend.device, self._arena.max_logit_rows)
        self._executor = EagerExecutor(self._step_kernels(arena))
