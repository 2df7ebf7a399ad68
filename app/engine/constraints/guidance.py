"""Grammars by llguidance. Only threads that compile import it, and only when there is something to compile."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.contract.constraints import PARSER_LIMITS
from app.contract.frames import Vocabulary
from app.engine.constraints.base import ConstraintError
from app.engine.constraints.spelling import CanonicalSpelling

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_SECONDS = 0.25
_SECONDS_PER_TOKEN = 0.002
"""Processor time that a sequence may take of all that share its steps; most take 0.1 ms a token."""
_BASE_BYTES = 1 << 20
_BYTES_PER_CHARACTER = 20
"""Memory of a compiled grammar, about. Small ones take 0.1 MB at first; their lexers grow as they are used."""
_MAX_MESSAGE = 300


class GuidanceCompiler:
    """:class:`~app.engine.constraints.base.GrammarCompiler` for one vocabulary.

    Making it takes about 10 us a token, most of it with the interpreter's lock held.

    Args:
        vocab_size: width of the logits.
        eos_token_ids: tokens that may come where a grammar ends.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer

        self._matcher = LLMatcher
        self._limits = LLParserLimits(**PARSER_LIMITS)
        # A model without EOS gets one beyond its logits: grammars then end where nothing else can follow.
        width = vocab_size if eos_token_ids else vocab_size + 1
        eos = sorted(eos_token_ids) or [vocab_size]
        wrapper: Any = _TokenTable(vocabulary, vocab_size, eos[0])  # told by its attributes
        self._tokenizer: LLTokenizer = LLTokenizer(wrapper, n_vocab=width, eos_token=eos)
        self._mask = _MaskShape(vocab_size, width)

    def compile(self, source: str) -> GuidanceGrammar:
        """See :class:`~app.engine.constraints.base.GrammarCompiler`."""
        matcher = self._matcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise ConstraintError(f"the grammar does not compile: {_one_line(matcher.get_error())}")
        grammar = GuidanceGrammar(matcher, self._mask, len(source))
        words = np.empty(self._mask.num_words, dtype=np.uint32)
        # The first mask fills the lexer's tables, which all copies share: it may leave no room for a second.
        for _ in range(2):
            try:
                grammar.begin().fill(words, bounded=False)
            except ConstraintError as error:
                raise ConstraintError(f"the grammar does not compile: {error}") from error
        return grammar


class GuidanceGrammar:
    """:class:`~app.engine.constraints.base.CompiledGrammar`."""

    def __init__(self, matcher: LLMatcher, mask: _MaskShape, size: int) -> None:
        self._matcher = matcher
        self.mask = mask
        """How masks lie in memory."""
        self.nbytes = _BASE_BYTES + _BYTES_PER_CHARACTER * size
        self.is_spent = False
        """Whether a sequence ran into a limit of the lexer, which all of the grammar's share."""

    def begin(self) -> GuidanceConstraint:
        """See :class:`~app.engine.constraints.base.CompiledGrammar`."""
        return GuidanceConstraint(self._matcher.deep_copy(), self)


class GuidanceConstraint:
    """:class:`~app.engine.constraints.base.TokenConstraint`."""

    def __init__(self, matcher: LLMatcher, grammar: GuidanceGrammar, share: _Share | None = None) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._share = share or _Share()

    def fill(self, words: NDArray[np.uint32], *, bounded: bool = True) -> None:
        """See :class:`~app.engine.constraints.base.TokenConstraint`."""
        mask = self._grammar.mask
        target = mask.target(words)
        started = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(target.ctypes.data, target.nbytes)
        if bounded:
            self._spend(started)
        self._check()  # in its error state a matcher's mask has EOS
        mask.finish(target, words)

    def advance(self, token_ids: Sequence[int]) -> None:
        """See :class:`~app.engine.constraints.base.TokenConstraint`."""
        started = time.thread_time()
        taken = self._matcher.consume_tokens(list(token_ids))
        self._share.seconds = min(_SECONDS, self._share.seconds + _SECONDS_PER_TOKEN * len(token_ids))
        self._spend(started)
        self._check()
        if not taken:
            raise ConstraintError("the answer left its grammar")

    def forced(self) -> list[int]:
        """See :class:`~app.engine.constraints.base.TokenConstraint`."""
        token_ids = self._matcher.compute_ff_tokens()
        self._check()
        return token_ids

    def ahead(self, token_id: int) -> GuidanceConstraint | None:
        """See :class:`~app.engine.constraints.base.TokenConstraint`. What it takes is this sequence's time, too."""
        started = time.thread_time()
        matcher = self._matcher.deep_copy()
        may_come = not matcher.is_error() and matcher.validate_tokens([token_id]) == 1
        goes_on = may_come and matcher.consume_tokens([token_id]) and not matcher.is_stopped()
        has_choice = goes_on and not matcher.compute_ff_tokens() and not matcher.is_error()
        self._spend(started)
        return GuidanceConstraint(matcher, self._grammar, self._share) if has_choice else None

    @property
    def may_end(self) -> bool:
        """See :class:`~app.engine.constraints.base.TokenConstraint`."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """See :class:`~app.engine.constraints.base.TokenConstraint`."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _spend(self, started: float) -> None:
        """Takes off what the thread has worked since: who takes more than a share holds up all others."""
        self._share.seconds -= time.thread_time() - started

    def _check(self) -> None:
        if self._matcher.is_error():
            self._grammar.is_spent = True
            raise ConstraintError(f"the grammar cannot be followed further: {_one_line(self._matcher.get_error())}")
        if self._share.seconds < 0:
            raise ConstraintError("the grammar takes too long to follow: it is ambiguous, or too complex")


class _Share:
    """Processor time that a sequence may still take."""

    def __init__(self) -> None:
        self.seconds = _SECONDS


class _MaskShape:
    """Memory that llguidance writes a mask to, and which of its bits count."""

    def __init__(self, vocab_size: int, width: int) -> None:
        self.num_words = -(-vocab_size // 32)
        self._written = -(-width // 32)
        tail = vocab_size % 32
        self._last = np.uint32((1 << tail) - 1) if tail else None

    def target(self, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
        return words if self._written == self.num_words else np.empty(self._written, dtype=np.uint32)

    def finish(self, target: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        if target is not words:
            words[:] = target[: self.num_words]
        if self._last is not None:
            words[-1] &= self._last


class _TokenTable:
    """A vocabulary as llguidance reads it (its ``TokenizerWrapper``).

    Control tokens are what a grammar calls ``<name>``, and match no text. All others are text, those of the tokenizer's
    added tokens included that are no control tokens.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = vocabulary.token_bytes[:vocab_size]
        self.tokens += [b""] * (max(vocab_size, eos_token_id + 1) - len(self.tokens))
        self.special_token_ids = [token_id for token_id in vocabulary.control_tokens if token_id < vocab_size]
        for token_id in self.special_token_ids:
            self.tokens[token_id] = vocabulary.control_tokens[token_id].encode()
        self._spell = CanonicalSpelling(vocabulary, vocab_size)

    def __call__(self, text: bytes | str) -> list[int]:
        return self._spell(text if isinstance(text, bytes) else text.encode())


def _one_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    return lines[0][:_MAX_MESSAGE] if lines else "no reason is known"
