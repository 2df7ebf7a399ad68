"""A model that several ranks share: this process is the first of them, and runs the others.

Every rank gets the bytes of the same :class:`~app.types.SchedulerOutput` and runs the step on its share of the model.
Logits are gathered by all, so that each rank samples the same tokens and knows which token a slot sampled last.

A rank that fails cannot be waited for by the others, nor caught up with: the runner is then lost as a whole.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from app.kernels.collective import Ranks
from app.models.architectures import find
from app.runner.encoding import EncodingRunner, make_encoding_runner
from app.runner.group import connect
from app.runner.loading import read_model_config
from app.runner.model_runner import ModelRunner, StepHandle
from app.runner.rank_processes import RankProcesses
from app.runner.start import load_runner, make_runner, settle_sizes, warm_up
from app.types import EngineConfig, KVCacheSpec, LoadProgress, StepPlan, StepResult

_BLAME_SECONDS = 0.5
"""For news of another rank's end, of which an error of this one may only be the consequence."""


class ParallelRunner:
    """:class:`~app.runner.model_runner.ModelRunner`'s face to the engine, in front of several of them.

    The other ranks end with :meth:`close`, or when this object or its process is gone.
    """

    def __init__(self, first: ModelRunner, others: RankProcesses, size: int, weight_bytes: int) -> None:
        self._first = first
        self._others = others
        self._size = size
        self.weight_bytes = weight_bytes
        """Of all ranks; norms are on each."""
        self.close = weakref.finalize(self, others.stop)
        """Ends the other ranks."""

    @property
    def kv_cache_spec(self) -> KVCacheSpec:
        """What the KV cache of each rank holds for a sequence."""
        return self._first.kv_cache_spec

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence."""
        return self._first.max_model_len

    @property
    def max_encode_len(self) -> int:
        """Tokens of the longest sequence that can be encoded."""
        return self._first.max_encode_len

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._first.vocab_size

    @property
    def num_parameters(self) -> int:
        """Elements of the whole model's weights, tied ones once."""
        return self._first.num_parameters

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of all pages of all ranks."""
        return self._first.kv_cache_bytes * self._size

    @property
    def dtype(self) -> str:
        """Of activations, and of weights that are not quantised."""
        return self._first.dtype

    @property
    def quantization(self) -> str:
        """Of the weights."""
        return self._first.quantization

    @property
    def kernels(self) -> str:
        """What runs the linear layers."""
        return self._first.kernels

    @property
    def device(self) -> str:
        """Where the first rank's share of the model runs."""
        return self._first.device

    @property
    def pipeline_depth(self) -> int:
        """Steps that are best under way at once."""
        return self._first.pipeline_depth

    def submit(self, step: StepPlan) -> StepHandle:
        """Starts a step on every rank.

        Raises:
            RunnerError: a rank is gone, and so are all.
        """
        self._others.send(step)
        try:
            return self._first.submit(step)
        except Exception as error:
            self._out_of_step(error)
            raise

    def collect(self, handle: StepHandle) -> StepResult:
        """Waits for a step's result; raises as :meth:`submit`."""
        try:
            result = self._first.collect(handle)
        except Exception as error:
            self._out_of_step(error)
            raise
        self._others.check()
        return result

    def _out_of_step(self, error: Exception) -> None:
        self._others.wait_lost(_BLAME_SECONDS)
        self._others.lose(f"rank 0: {type(error).__name__}: {error}")


def start_runner(
    config: EngineConfig,
    progress: Callable[[LoadProgress], None],
    on_lost: Callable[[str], None] = lambda _: None,
) -> ModelRunner | ParallelRunner | EncodingRunner:
    """Loads a model onto as many ranks as the config says and makes it ready for its first step.

    Args:
        progress: told of the first rank's phases, as by :func:`~app.runner.start.make_runner`.
        on_lost: called from any thread when a rank is gone after that: no step succeeds any more, and one that is
            under way on a GPU may never end.

    Raises:
        ConfigError, WeightError, RunnerError: as ``make_runner``, of any rank; or the model cannot be shared out so.
    """
    if not find(read_model_config(Path(config.model_dir)).architecture).generates:
        return make_encoding_runner(config, progress)
    size = config.tensor_parallel_size
    if size == 1:
        return make_runner(config, progress)
    ranks = Ranks(0, size)
    config = settle_sizes(config, ranks)
    ready = threading.Event()
    others = RankProcesses(config, lambda reason: on_lost(reason) if ready.is_set() else None)
    try:
        first = load_runner(config, progress, ranks)
        weight_bytes = others.wait_loaded()
        connect(ranks, torch.device(first.device), others.meeting)
        warm_up(first, progress)
        others.check()
    except BaseException:
        others.stop()
        raise
    ready.set()
    return ParallelRunner(first, others, size, first.weight_bytes + weight_bytes)
