"""What the engine asks of a grammar, whatever compiled it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ConstraintError(Exception):
    """A grammar cannot be compiled or followed further; the message is one line for the client."""


class TokenConstraint(Protocol):
    """Where one sequence stands in its grammar. One thread at a time may call it.

    Once a call has raised :class:`ConstraintError`, every later call does.
    """

    def fill(self, words: NDArray[np.uint32]) -> None:
        """Writes which tokens may come next: token v may when bit v % 32 of word v // 32 is set.

        Bits of EOS tokens are set where the grammar may end. Raises :class:`ConstraintError`.
        """

    def advance(self, token_ids: Sequence[int]) -> None:
        """Takes tokens that the sequence has now. Raises :class:`ConstraintError`, also for one that may not come."""

    def forced(self) -> list[int]:
        """Tokens that must come next, spelled as the model's tokenizer spells them; empty where there is a choice.

        Raises :class:`ConstraintError`.
        """

    def ahead(self, token_id: int) -> TokenConstraint | None:
        """Where the sequence would stand with one token more, apart from this; None where the token may not come, or
        leaves no choice of what follows."""

    @property
    def may_end(self) -> bool:
        """Whether the tokens so far match the whole grammar."""

    @property
    def is_complete(self) -> bool:
        """Whether they do and nothing else can follow."""


class CompiledGrammar(Protocol):
    """A grammar that is ready to be followed by any number of sequences."""

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""

    @property
    def is_spent(self) -> bool:
        """Whether no further sequence may begin: it has to be compiled anew."""

    def begin(self) -> TokenConstraint:
        """A constraint for one sequence, at the grammar's start."""


class GrammarCompiler(Protocol):
    """Compiles grammars for one vocabulary. Safe to call from several threads."""

    def compile(self, source: str) -> CompiledGrammar:
        """Takes milliseconds to seconds. Raises :class:`ConstraintError`."""
