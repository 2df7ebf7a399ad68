"""How long each step took, and what it did."""

from __future__ import annotations

from app.contract.frames import StepRecord
from app.contract.step import EncodeResult, StepResult
from app.engine.encoding import EncodeStep
from app.engine.step import Step

_MAX_RECORDS = 1024
"""Records that are kept until they are taken; older ones are dropped."""


class StepRecords:
    """Records of the steps since they were last taken. Instants are the engine's clock, in seconds."""

    def __init__(self) -> None:
        self._records: list[StepRecord] = []
        self._began: float | None = None
        """When the step under way began: its predecessor ended, or there was work again. None: no step is under way."""

    def begin(self, now: float) -> None:
        """A step is about to be planned; its time runs from the end of the step before it, if that led on to it."""
        if self._began is None:
            self._began = now

    def pause(self) -> None:
        """No step follows at once: the time until the next one counts for no step."""
        self._began = None

    def add(self, step: Step | EncodeStep, result: StepResult | EncodeResult, now: float) -> float:
        """Records a step that ended now; returns the seconds that it took."""
        seconds = now - (now if self._began is None else self._began)
        self._began = now
        self._records.append(
            StepRecord(
                step.num_tokens,
                seconds,
                result.kernel_seconds,
                decode=isinstance(step, Step) and step.is_decode,
                replayed=result.replayed,
                encode=isinstance(step, EncodeStep),
            )
        )
        if len(self._records) > 2 * _MAX_RECORDS:
            del self._records[:-_MAX_RECORDS]
        return seconds

    def take(self) -> list[StepRecord]:
        """The records since the last call, or only the latest of them when that was long ago."""
        records, self._records = self._records, []
        return records[-_MAX_RECORDS:]
