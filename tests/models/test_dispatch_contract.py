"""Between kernels nothing computes: outside a kernel's own files a step takes only views of tensors.

A recorded step replays kernels alone, so an operation that slips in between would be lost without a sign.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import app
from app.contract.request import SamplingParams
from app.contract.step import ScheduledRow
from app.kernels.types import Act
from app.layers.norm import RMSNorm
from app.runner.model_runner import ModelRunner
from tests.models.tiny import make_reference, save
from tests.runner.driver import engine_config, runner_of
from tests.runner.ranks import run_on_ranks
from tests.runner.steps import GREEDY, row_of, slot_of, step_of

APP = Path(app.__file__).parent
KERNELS = APP / "kernels"

REPORTS = {
    ("runner/sampler.py", "aten.index_select.default"),
    ("runner/pending_sample.py", "aten.empty.memory_format"),
}
"""Which samples want log-probabilities, and room for them: done behind the step, not within it."""


class OnlyKernelsCompute(TorchDispatchMode):
    """Collects (file, operation) of all that computes, copies or allocates outside the reference kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.strays: set[tuple[str, str]] = set()
        self.num_kernel_ops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Inference mode hands composite operations over whole: `to` or `reshape` may be views, or copies underneath.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        files = _stack_files()
        if any(file.name in ("reference.py", "cpu.py") and KERNELS in file.parents for file in files):
            self.num_kernel_ops += 1
        elif not _is_view(func):
            self.strays.add((_caller(files), str(func)))
        return func(*args, **kwargs)


def _is_view(func: Any) -> bool:
    """Whether an operation only gives another view of its input: an alias comes back, nothing is written."""
    aliases = [value.alias_info for value in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _stack_files() -> list[Path]:
    """Source files of the callers, innermost first."""
    frame: FrameType | None = sys._getframe(2)
    files = []
    while frame is not None:
        files.append(Path(frame.f_code.co_filename))
        frame = frame.f_back
    return files


def _caller(files: list[Path]) -> str:
    """The innermost file of ours, relative to ``app``."""
    ours = next(file for file in files if APP in file.parents or file == Path(__file__))
    return str(ours.relative_to(APP)) if APP in ours.parents else ours.name


def strays_of(action: Callable[[], object]) -> set[tuple[str, str]]:
    """What ``action`` does outside the reference kernels."""
    checker = OnlyKernelsCompute()
    with torch.inference_mode(), checker:
        action()
    return checker.strays


@pytest.fixture(
    scope="module",
    params=["llama_biases", "mistral", "qwen3", "qwen2_sliding", "gpt2", "gemma3", "qwen3moe", "gpt_neox", "cohere2"],
)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    return runner_of(save(make_reference(request.param), tmp_path_factory.mktemp(request.param)))


def row(runner: ModelRunner, slot: int, start: int, token_ids: list[int] | None, **wanted: Any) -> ScheduledRow:
    """A row whose ``blocks`` are the same in every KV cache group."""
    blocks = wanted.pop("blocks", ())
    return row_of(slot, start, token_ids, groups=[blocks] * len(runner.info.kv_cache.groups), **wanted)


def test_prefill_chunks_and_decodes_compute_in_kernels_alone(runner: ModelRunner) -> None:
    prompt = list(range(40))
    runner.submit(step_of([row(runner, 0, 0, prompt, blocks=range(3))], [slot_of(0, prompt)]))
    rows = [row(runner, 0, 40, [7]), row(runner, 1, 0, prompt[:20], blocks=[3, 4], num_samples=0)]
    mixed = step_of(rows, [slot_of(1, prompt)])
    assert strays_of(lambda: runner.submit(mixed)) == set()


def test_ranks_compute_in_kernels_alone_and_meet(tmp_path: Path) -> None:
    directory = save(make_reference("llama_biases"), tmp_path)

    def strays(runner: ModelRunner) -> set[tuple[str, str]]:
        prompt = list(range(20))
        step = step_of([row(runner, 0, 0, prompt, blocks=range(2))], [slot_of(0, prompt)])
        return strays_of(lambda: runner.submit(step))

    meetings = {("runner/group.py", f"c10d.{op}") for op in ("allreduce_.default", "_allgather_base_.default")}
    config = engine_config(directory, tensor_parallel_size=2)
    assert run_on_ranks(config, tmp_path / "meeting", strays) == [meetings] * 2


def test_a_chunk_without_logits_computes_in_kernels_alone(runner: ModelRunner) -> None:
    chunk = step_of([row(runner, 0, 0, [1, 2, 3], blocks=[0], num_samples=0)], [slot_of(0, [1, 2, 3, 4])])
    assert strays_of(lambda: runner.submit(chunk)) == set()


PENALTIES = SamplingParams(repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.1, logit_bias={3: 1.0})


@pytest.mark.parametrize(
    ("params", "beside"),
    [
        (GREEDY, set()),
        (SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.05), set()),
        (PENALTIES, set()),
        (SamplingParams(logprobs=2), REPORTS),
    ],
    ids=["greedy", "filters", "penalties", "logprobs"],
)
def test_a_decode_computes_in_kernels_alone(
    runner: ModelRunner, params: SamplingParams, beside: set[tuple[str, str]]
) -> None:
    prompt = list(range(10))
    runner.submit(step_of([row(runner, 0, 0, prompt, blocks=[0])], [slot_of(0, prompt, params)]))
    decode = step_of([row(runner, 0, 10, None)])
    assert strays_of(lambda: runner.submit(decode)) == beside


def test_the_checker_sees_kernels_at_work(runner: ModelRunner) -> None:
    step = step_of([row(runner, 0, 0, [1, 2, 3], blocks=[0])], [slot_of(0, [1, 2, 3])])
    checker = OnlyKernelsCompute()
    with checker:
        runner.submit(step)
    assert checker.num_kernel_ops > 50


HERE = Path(__file__).name
GRID = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize(
    ("action", "op"),
    [
        (lambda: GRID + 1, "aten.add.Tensor"),
        (lambda: GRID.add_(0), "aten.add_.Tensor"),
        (lambda: GRID.t().contiguous(), "aten.clone.default"),
        (lambda: GRID.t().reshape(12), "aten.clone.default"),
        (lambda: GRID[torch.tensor([0])], "aten.index.Tensor"),
        (lambda: GRID.to(torch.bfloat16), "aten._to_copy.default"),
        (lambda: GRID[0, 0].item(), "aten._local_scalar_dense.default"),
        (lambda: torch.empty(3), "aten.empty.memory_format"),
        (lambda: GRID[0].copy_(GRID[1]), "aten.copy_.default"),
    ],
)
def test_the_checker_catches(action: Callable[[], object], op: str) -> None:
    assert (HERE, op) in strays_of(action)


def test_the_checker_lets_views_pass() -> None:
    def views() -> None:
        for view in (GRID[:2], GRID[0], GRID.view(4, 3), GRID.reshape(12), GRID.t(), GRID.expand(2, 3, 4)):
            assert view.data_ptr() == GRID.data_ptr()

    assert strays_of(views) == set()


@pytest.mark.parametrize("runner", ["qwen3"], indirect=True)
def test_the_checker_catches_arithmetic_in_a_layer(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = RMSNorm.__call__

    def scaled_norm(self: RMSNorm, x_TD: torch.Tensor, out: Act, **residual: Any) -> None:
        norm(self, x_TD * 1.0, out, **residual)

    monkeypatch.setattr(RMSNorm, "__call__", scaled_norm)
    step = step_of([row(runner, 0, 0, [1, 2, 3], blocks=[0])], [slot_of(0, [1, 2, 3])])
    assert (HERE, "aten.mul.Tensor") in strays_of(lambda: runner.submit(step))
