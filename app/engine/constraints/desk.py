"""Constrained requests, as the engine's core sees them: those that wait for their grammar, and those that follow it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.contract.frames import EngineError, Vocabulary
from app.contract.request import FinishReason
from app.engine.constraints.base import ConstraintError, GrammarCompiler
from app.engine.constraints.compiler import Compiler
from app.engine.request import Request
from app.engine.step import Step

if TYPE_CHECKING:
    from app.engine.constraints.masks import MaskMaker, StepMasks


@dataclass(slots=True)
class Totals:
    """Counts since the engine began; see :class:`~app.contract.frames.EngineStats`."""

    forced_tokens: int = 0
    mask_seconds: float = 0.0
    grammars: int = 0
    compile_seconds: float = 0.0


class ConstraintDesk:
    """Grammars of requests. Only the engine's thread calls it."""

    def __init__(self, vocab_size: int, eos_token_ids: Collection[int], on_compiled: Callable[[], None]) -> None:
        """
        Args:
            on_compiled: called from another thread when :meth:`settle` has something new.
        """
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._on_compiled = on_compiled
        self._vocabulary: Vocabulary | None = None
        self._compiler: Compiler | None = None
        self._waiting: dict[str, list[Request]] = {}
        """Requests by the grammar that they wait for."""
        self._num_waiting = 0
        self._masks: MaskMaker | None = None
        self._num_following = 0
        """Requests that follow a grammar."""
        self.totals = Totals()

    def __len__(self) -> int:
        """Requests that wait for their grammar."""
        return self._num_waiting

    @property
    def has_outcomes(self) -> bool:
        """Whether :meth:`settle` has something new."""
        return self._compiler is not None and self._compiler.has_outcomes

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Takes the tokenizer's side of the model; the first one counts."""
        if self._vocabulary is None:
            self._vocabulary = vocabulary
            self._compiler = Compiler(self._make_compiler(vocabulary), self._on_compiled)
            from app.engine.constraints.masks import MaskMaker  # with numpy, which an engine else starts without

            self._masks = MaskMaker(self._vocab_size, self._eos_token_ids)

    def _make_compiler(self, vocabulary: Vocabulary) -> Callable[[], GrammarCompiler]:
        vocab_size, eos_token_ids = self._vocab_size, self._eos_token_ids

        def make() -> GrammarCompiler:
            from app.engine.constraints.guidance import GuidanceCompiler

            return GuidanceCompiler(vocabulary, vocab_size, eos_token_ids)

        return make

    # -- waiting for a grammar ----------------------------------------------------------------------------------

    def add(self, request: Request, source: str) -> EngineError | None:
        """Lets a request wait for its grammar; returns why it cannot."""
        if self._compiler is None:
            return EngineError("engine_error", "the engine was not told the vocabulary that grammars need")
        error = self._compiler.submit(source)
        if error is None:
            self._waiting.setdefault(source, []).append(request)
            self._num_waiting += 1
        return error

    def drop(self, request: Request) -> bool:
        """Forgets a constrained request; returns whether it never got a grammar, and so is in no queue of others."""
        if request.constraint is not None:
            self._num_following -= 1
            return False
        for requests in self._waiting.values():
            if request in requests:
                requests.remove(request)
                self._num_waiting -= 1
        return True

    def settle(self) -> list[tuple[Request, EngineError | None]]:
        """Requests whose grammar is there, or failed with an error, since the last call."""
        settled: list[tuple[Request, EngineError | None]] = []
        if self._compiler is None:
            return settled
        for source, grammar, error, seconds in self._compiler.take():
            self.totals.grammars += seconds > 0 and grammar is not None
            self.totals.compile_seconds += seconds if grammar is not None else 0.0
            requests = self._waiting.pop(source, [])
            self._num_waiting -= len(requests)
            for request in requests:
                if grammar is not None:
                    request.constraint = grammar.begin()
                    self._num_following += 1
                settled.append((request, error))
        return settled

    # -- following it -------------------------------------------------------------------------------------------

    def masks(self, step: Step) -> StepMasks | None:
        """Starts making the masks of a step's samples; None where no grammar binds one."""
        if not self._num_following or self._masks is None:
            return None
        rows = [
            (planned.request, planned.row)
            for planned in step.rows
            if planned.request.constraint is not None and planned.row.num_samples
        ]
        return self._masks.begin(rows) if rows else None

    def why(self, request: Request) -> EngineError | None:
        """Why there was no mask for a request; None where its grammar is not to blame."""
        try:
            if request.constraint is not None:
                request.constraint.forced()
        except ConstraintError as error:
            return EngineError("invalid_constraint", str(error))
        return None

    def follow(self, request: Request, token_ids: list[int]) -> tuple[list[int], FinishReason | None]:
        """Gives a request tokens, and those that its grammar then forces; returns them and why it ended, if it did.

        A request ends where nothing can follow in its grammar, whatever else was asked for.

        Args:
            token_ids: tokens that were sampled; none at the start, where the grammar may force its first ones.

        Raises:
            ConstraintError: the grammar cannot be followed further.
        """
        constraint = request.constraint
        if constraint is None:
            raise RuntimeError(f"request {request.request_id} has no grammar")
        taken, reason = request.append(token_ids)
        if reason is FinishReason.STOP:
            return taken, reason
        constraint.advance(taken)
        while reason is None and request.takes_forced and not constraint.is_complete:
            forced, reason = request.append(constraint.forced())
            if not forced:
                break
            self.totals.forced_tokens += len(forced)
            taken += forced
            if reason is FinishReason.STOP:
                return taken, reason
            constraint.advance(forced)
        return taken, FinishReason.STOP if constraint.is_complete else reason
