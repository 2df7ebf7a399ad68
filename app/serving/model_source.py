"""What a model that comes and goes is made of, and why it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from app.store.progress import ProgressReporter

if TYPE_CHECKING:
    from app.serving.generator import Generator


class NoRoomError(Exception):
    """A model cannot have the memory that it needs; one line a person can act on.

    Args:
        passes: it may later.
    """

    def __init__(self, message: str, *, passes: bool) -> None:
        super().__init__(message)
        self.passes = passes


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model could not be loaded, or was lost."""

    reason: str
    until: float
    """Instant, on the clock of keep-alive times, from which a request tries again."""
    passes: bool
    """Clients are told to come back then."""


class Engine(Protocol):
    """What keeps an engine running: :class:`app.serving.supervisor.Supervisor`."""

    @property
    def pid(self) -> int | None:
        """Process id of the present engine."""

    def start(self) -> None:
        """Begins to start the engine."""

    async def stop(self) -> None:
        """Ends it."""

    def stall_limit(self) -> float:
        """Seconds without progress after which it counts as stalled."""


class ModelSource(Protocol):
    """A model as it is stored and configured. All but :meth:`engine` may take long, and run in a thread."""

    @property
    def takes_the_rest(self) -> bool:
        """Whether its KV cache has all memory of a GPU that is left."""

    def is_here(self) -> bool:
        """Whether its files are on this machine. Raises :class:`StoreError`."""

    def fetch(self, progress: ProgressReporter) -> None:
        """Finds its files, and brings them here if they are not. Raises :class:`StoreError`."""

    def guess(self) -> int:
        """Bytes of memory that it will take, a rough guess that costs nothing; its files have been found."""

    def needs(self) -> int:
        """Bytes of memory that it will take, by its shapes and settings; its files have been found."""

    def text_side(self) -> Generator:
        """Its tokenizer, templates and defaults; its files have been found. Raises ValueError."""

    def engine(self, on_give_up: Callable[[str], None]) -> Engine:
        """An engine for it that has not been started.

        Args:
            on_give_up: called with the reason when the engine failed too often.
        """
