"""What the engine asks of a runner, the tensor side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from app.contract.info import RunnerInfo
from app.contract.step import EncodeResult, Plan, StepResult, TokenMasks
from app.engine.encoding import EncodeStep
from app.engine.step import Step


class Runner(Protocol):
    """Computes plans. ``submit`` starts one, ``collect`` waits for its result; plans are collected in order.

    A :class:`~app.contract.step.StepPlan` gives a :class:`~app.contract.step.StepResult`, an
    :class:`~app.contract.step.EncodeBatch` (only where ``info.max_encode_len`` is above 0) an
    :class:`~app.contract.step.EncodeResult`.

    Either may raise: the plan's requests then end in an error, and their slots are bound anew before they are used
    again. A row whose token source is the device and whose slot sampled nothing in the step before is void: any
    result will do, it is not read.
    """

    @property
    def info(self) -> RunnerInfo:
        """Facts about the model."""

    def submit(self, plan: Plan, masks: TokenMasks | None = None, /) -> Any:
        """Starts computing a plan; returns a handle for :meth:`collect`.

        Args:
            masks: which tokens some of a step's samples may be; waited for as late as can be.
        """

    def collect(self, handle: Any, /) -> StepResult | EncodeResult:
        """Waits for the result of the oldest plan that has not been collected."""


class BlockRecords(Protocol):
    """Copies of blocks on their way to the host."""

    def ready(self) -> bool:
        """Whether they are there."""

    def take(self) -> list[bytes]:
        """The copies, once; waits for them."""


@runtime_checkable
class BlockRunner(Protocol):
    """A runner whose blocks can be copied out of its pages and back.

    A block's copy is its bytes of all layers of its group, ``bytes_per_block`` of them. Copies are made in the order of
    calls: after all that was submitted before, before all that is submitted later.
    """

    @property
    def info(self) -> RunnerInfo:
        """Facts about the model."""

    @property
    def page_layout(self) -> str:
        """What a copy's bytes mean: only pages of an equal text may be filled with it."""

    def read_blocks(self, group: int, block_ids: Sequence[int], /) -> BlockRecords:
        """Begins to copy blocks of a KV cache group, which may be overwritten by whatever is submitted next."""

    def write_blocks(self, group: int, block_ids: Sequence[int], records: Sequence[bytes], /) -> None:
        """Fills blocks of a KV cache group."""


def check_result(step: Step | EncodeStep, result: StepResult | EncodeResult) -> None:
    """Checks that a result answers each row or sequence of a step.

    Raises:
        RuntimeError: it does not.
    """
    if isinstance(step, EncodeStep):
        if not isinstance(result, EncodeResult) or len(result.sequences) != len(step.entries):
            raise RuntimeError(f"not one result for each of {len(step.entries)} encoded sequences")
        return
    if not isinstance(result, StepResult) or len(result.rows) != len(step.rows):
        raise RuntimeError(f"not one result for each of {len(step.rows)} scheduled rows")
    for planned, output in zip(step.rows, result.rows, strict=True):
        if len(output.token_ids) > planned.row.num_samples:
            raise RuntimeError(f"{planned.row.num_samples} samples asked for, {len(output.token_ids)} returned")
