"""One choice of a request: tokens from the engine in, final text out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from app.contract.frames import EngineOutput, TokenLogprobs
from app.contract.request import FinishReason, SamplingParams
from app.serving.types import ChoiceDelta, TokenLogprob
from app.text.detokenizer import IncrementalDetokenizer
from app.text.parsers.reply import Content, ReplyParser, ReplyPart
from app.text.stop import StopMatcher
from app.text.tokenizer import Tokenizer


class _PendingToken(NamedTuple):
    due: int
    """Characters that must be released before the token may be."""
    token_id: int
    logprob: TokenLogprob | None
    thought: bool


class Choice:
    """Holds back what is not final yet: unfinished characters and what may become a stop string.

    The token that ends a choice (EOS or of ``stop_token_ids``) is listed with the others, in token ids and in
    logprobs, so that both always have as many elements as ``usage.completion_tokens`` counts. Its text is left out
    unless ``include_stop``. Of a matched stop string every token is listed, up to the one that completed it.
    Stop strings are looked for once ``min_tokens`` tokens are there; those of :func:`control_stops` the engine finds.
    With a parser, the text is told apart into parts, stop strings being looked for before; what the parser holds back
    holds back no token.
    With ``max_tokens`` 0 the one token that the engine makes is not part of the answer.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(
        self, index: int, params: SamplingParams, tokenizer: Tokenizer, parser: ReplyParser | None = None
    ) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.last_arrival: float | None = None
        """When its last token came."""
        self.drafts = (0, 0)
        """Tokens that the engine guessed of it so far, and those of them that were right."""
        self._params = params
        self._tokenizer = tokenizer
        self._parser = parser
        ids = map(tokenizer.control_token_id, parser.shown_tokens if parser else ())
        self._shown = frozenset(token_id for token_id in ids if token_id is not None)
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens, shown=self._shown)
        self._matcher = StopMatcher(params.stop, params.include_stop)
        self._control_stops = control_stops(params, tokenizer)
        self._stop_reason: str | int | None = None
        self._num_tokens = 0
        self._decoded = 0
        self._text = ""
        self._parts: list[ReplyPart] = []
        self._pending: deque[_PendingToken] = deque()
        self._finish_sent = False

    @property
    def ended(self) -> bool:
        """Whether it has a finish reason."""
        return self.finish_reason is not None

    def push(self, output: EngineOutput) -> None:
        """Takes the engine's next output; nothing that comes after the end counts."""
        if self.ended:
            return
        if self._params.max_tokens == 0:
            self._finish(FinishReason.LENGTH, None)
            return
        last = len(output.new_token_ids) - 1
        for place, token_id in enumerate(output.new_token_ids):
            logprob = output.logprobs[place] if output.logprobs is not None else None
            is_stop_token = place == last and output.stop_token_id is not None
            if self._push_token(token_id, logprob, with_text=not is_stop_token or self._params.include_stop):
                return
        if output.finish_reason is not None and not self._release(self._detokenizer.flush()):
            self._add(self._matcher.flush())
            self._finish(output.finish_reason, self._requested_stop(output.stop_token_id))

    def take(self) -> ChoiceDelta | None:
        """What became final since the last call; None if nothing did."""
        released = self._decoded - self._matcher.held_chars
        tokens: list[_PendingToken] = []
        while self._pending and (self.ended or self._pending[0].due <= released):
            tokens.append(self._pending.popleft())
        ends = self.ended and not self._finish_sent
        if not (self._text or self._parts or tokens or ends):
            return None
        self._finish_sent = self.ended
        text, self._text = self._text, ""
        parts, self._parts = tuple(self._parts), []
        return ChoiceDelta(
            index=self.index,
            text=text,
            token_ids=[token.token_id for token in tokens],
            tokens=[token.logprob for token in tokens if token.logprob is not None],
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            parts=parts,
            reasoning_tokens=sum(token.thought for token in tokens),
        )

    def _push_token(self, token_id: int, logprob: TokenLogprobs | None, *, with_text: bool) -> bool:
        """Takes one token; True when it completes a stop string."""
        start = self._decoded
        piece = self._detokenizer.push([token_id]) if with_text else ""
        silent = not with_text or self._is_silent(token_id)
        described = describe(self._tokenizer, logprob) if logprob is not None else None
        self._num_tokens += 1
        thought = self._in_thought
        stopped = self._release(piece)
        thought = thought or self._in_thought  # the marks around it count with it
        self._pending.append(_PendingToken(start if silent else start + 1, token_id, described, thought))
        return stopped

    @property
    def _in_thought(self) -> bool:
        return self._parser is not None and self._parser.in_reasoning

    def _is_silent(self, token_id: int) -> bool:
        if self._params.skip_special_tokens and self._tokenizer.is_special(token_id) and token_id not in self._shown:
            return True
        return not self._tokenizer.token_bytes(token_id)

    def _release(self, piece: str) -> bool:
        self._decoded += len(piece)
        if self._num_tokens <= self._params.min_tokens:
            self._add(piece)
            return False
        result = self._matcher.push(piece)
        self._add(result.text)
        if result.stop is not None:
            self._finish(FinishReason.STOP, result.stop)
        return result.stop is not None

    def _add(self, text: str) -> None:
        """Takes text that is final."""
        if self._parser is None:
            self._text += text
        elif text:
            self._add_parts(self._parser.push(text))

    def _add_parts(self, parts: Sequence[ReplyPart]) -> None:
        self._parts += parts
        self._text += "".join(part.text for part in parts if isinstance(part, Content))

    def _requested_stop(self, token_id: int | None) -> str | int | None:
        if token_id is None or token_id in self._params.stop_token_ids:
            return token_id
        return self._control_stops.get(token_id)

    def _finish(self, reason: FinishReason, stop_reason: str | int | None) -> None:
        self.finish_reason = reason
        self._stop_reason = stop_reason
        if self._parser is not None:
            self._add_parts(self._parser.flush())


def control_stops(params: SamplingParams, tokenizer: Tokenizer) -> dict[int, str]:
    """Stop strings that are the text of a control token, by its id.

    Left out of the text, such a token is for the engine to stop at. Where it is shown, its text is matched like any.
    """
    if not params.skip_special_tokens:
        return {}
    token_ids = {stop: tokenizer.control_token_id(stop) for stop in params.stop}
    return {token_id: stop for stop, token_id in token_ids.items() if token_id is not None}


def describe(tokenizer: Tokenizer, logprob: TokenLogprobs) -> TokenLogprob:
    """The engine's log-probabilities of one position, as text."""
    top = [
        TokenLogprob(token_id, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), value, rank)
        for rank, (token_id, value) in enumerate(logprob.top, start=1)
    ]
    token_id = logprob.token_id
    return TokenLogprob(
        token_id, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), logprob.logprob, logprob.rank, top
    )
