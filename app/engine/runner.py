"""What the engine asks of a runner, the tensor side."""

from __future__ import annotations

from typing import Any, Protocol

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
