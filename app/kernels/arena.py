"""The step arena, which activations are taken from."""

from __future__ import annotations

import torch
from torch import Tensor

from app.kernels.acts import Act, ActFormat, num_scales


class StepArena:
    """Buffers of one step's activations, each at the same address in every step.

    ``take`` hands out a view of the first T rows of a buffer that holds ``max_rows``; calls must come in the same
    order with the same widths in every step (a recorded step replays the addresses). Nothing is zeroed.
    """

    def __init__(self, max_rows: int, device: torch.device, max_logit_rows: int | None = None) -> None:
        self._max_rows = max_rows
        self.max_logit_rows = max_rows if max_logit_rows is None else max_logit_rows
        """Rows of logits of the largest step."""
        self._device = device
        self._buffers: list[Tensor] = []
        self._next = 0
        self._rows = 0

    @property
    def max_rows(self) -> int:
        """Tokens of the largest step."""
        return self._max_rows

    def begin(self, rows: int) -> None:
        """Starts a step of ``rows`` tokens; what was taken before may be overwritten from here on.

        Raises:
            ValueError: more rows than the arena holds.
        """
        if rows > self._max_rows:
            raise ValueError(f"a step of {rows} rows does not fit an arena of {self._max_rows}")
        self._next = 0
        self._rows = rows

    def take(self, width: int, dtype: torch.dtype) -> Tensor:
        """The step's next buffer, [T, width]."""
        return self._take(self._max_rows, width, dtype)[: self._rows]

    def take_flat(self, elements: int, dtype: torch.dtype) -> Tensor:
        """The step's next buffer, [elements], whatever the step's size."""
        return self._take(1, elements, dtype)[0]

    def _take(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        if self._next == len(self._buffers):
            self._buffers.append(torch.empty(rows, width, dtype=dtype, device=self._device))
        buffer = self._buffers[self._next]
        if buffer.shape[1] != width or buffer.dtype != dtype:
            raise ValueError(
                f"arena buffer {self._next} is [{buffer.shape[1]}] {buffer.dtype}, asked for [{width}] {dtype}"
            )
        self._next += 1
        return buffer

    def take_act(self, width: int, dtype: torch.dtype, fmt: ActFormat) -> Act:
        """An :class:`Act` [T, width] in the format that its consumer asks for."""
        if fmt is ActFormat.FLOAT:
            return Act(self.take(width, dtype))
        return Act(self.take(width, torch.int8), self.take(num_scales(width, fmt), torch.float32))

    def nbytes(self) -> int:
        """Bytes held by the buffers handed out so far."""
        return sum(b.numel() * b.element_size() for b in self._buffers)
