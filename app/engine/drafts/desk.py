"""Guesses for running requests, as the engine's core sees them: who is guessed for, how far, and what came of it."""

from __future__ import annotations

from app.contract.config import EngineConfig
from app.engine.constraints.base import TokenConstraint
from app.engine.drafts.costs import StepCosts
from app.engine.drafts.history import Histories
from app.engine.drafts.ngrams import Match, NGramIndex
from app.engine.drafts.pace import Pace
from app.engine.request import Request
from app.engine.step import Budget, Step

_MAX_ROWS = 32
"""Rows of a step beyond which nothing is guessed: products of so many tokens cost by the token."""
_INDEXED = 1 << 16
"""Tokens of a request that are searched, at most; of a longer one the latest."""
_INDEXED_AT_ONCE = 2048
"""Tokens of a request that are indexed between two steps: they take about a millisecond."""
_LONG = 8
"""Tokens of a match that is long: what follows it is a copy rather than a common turn of phrase."""
_FIRST_LONG, _FIRST_SHORT = 0.8, 0.4
"""Shares of guesses behind long and short matches that are taken to be right before a request's own say so."""
_LEAST_CHANCE = 0.1
"""Chance of being right below which a guess is not tried, even where it is free: the host's work is not."""


class Drafting:
    """What is kept of one request to guess its next tokens.

    Args:
        size: tokens of an n-gram.
    """

    def __init__(self, request: Request, size: int) -> None:
        self._long, self._short = Pace(_FIRST_LONG), Pace(_FIRST_SHORT)
        self.pace = self._short
        """The pace of the guesses that were made last."""
        self._index = NGramIndex(size, _INDEXED)
        self._size = size
        self._prediction = request.prediction_token_ids[: _INDEXED // 4]
        self._num_indexed = max(0, len(request.token_ids) - _INDEXED // 2)
        if self._prediction:
            self._index.append(self._prediction)
            self._index.end_text()

    def propose(self, request: Request, histories: Histories | None, count: int) -> list[int]:
        """Guesses for the tokens that follow the known ones, ``count`` at most."""
        token_ids, start = request.token_ids, self._num_indexed
        self._index.append(token_ids[start : start + _INDEXED_AT_ONCE])
        self._num_indexed = min(len(token_ids), start + _INDEXED_AT_ONCE)
        found = self._find(request, histories, count)
        if found is None:
            return []
        self.pace = self._long if found.length >= _LONG else self._short
        return [] if self.pace.rests(len(token_ids)) else found.token_ids

    def _find(self, request: Request, histories: Histories | None, count: int) -> Match | None:
        begun, token_ids = request.num_output_tokens, request.token_ids
        if 0 < begun < self._size and self._prediction[:begun] == token_ids[request.num_prompt_tokens :]:
            return Match(_LONG, self._prediction[begun : begun + count])
        found = self._index.find(token_ids, count)
        other = None if histories is None else histories.find(request.cache_salt, token_ids, count)
        return other if other is not None and (found is None or other.length > found.length) else found


class DraftDesk:
    """Guesses of requests, and the counts of them. Only the engine's thread calls it.

    Args:
        enabled: whether the runner verifies guesses and the KV cache can go back.
    """

    def __init__(self, config: EngineConfig, *, enabled: bool) -> None:
        self._enabled = enabled and config.draft != "none"
        self._most = config.max_draft_tokens
        self._size = config.draft_ngram
        self._histories = Histories(self._size) if config.draft == "history" else None
        self._costs = StepCosts(_MAX_ROWS)
        self.num_drafts = 0
        """Guesses that were verified."""
        self.num_right = 0
        """Those of them that were right."""

    def begin(self, request: Request) -> None:
        """Takes a new request."""
        if self._enabled and _may_have_drafts(request):
            request.drafting = Drafting(request, self._size)

    def propose(self, request: Request, offered: list[int], num_running: int) -> None:
        """Guesses what follows the known tokens of a request whose last row has been collected.

        Args:
            offered: the runner's own guesses, which go before others.
            num_running: requests that run.
        """
        drafts, drafting = offered if _may_have_drafts(request) else [], request.drafting
        if drafting is not None and not drafts and num_running <= _MAX_ROWS:
            drafts = drafting.propose(request, self._histories, self._most)
        drafts = _followed(request, drafts) if request.is_constrained else drafts
        request.draft_token_ids, request.has_drafter = drafts, bool(drafts)

    def worthwhile(self, request: Request, budget: Budget) -> list[int]:
        """The request's first guesses: those that fit the step, and are likely enough for what they cost."""
        drafts = budget.drafts(request)
        if request.drafting is None or not drafts:
            return drafts
        pace = request.drafting.pace
        chance = self._costs.least_chance(budget.num_rows, budget.num_drafts, budget.num_expected)
        drafts = drafts[: pace.most(max(_LEAST_CHANCE, chance))]
        if not drafts:
            pace.rest(len(request.token_ids))
        budget.num_drafts += len(drafts)
        budget.num_expected += sum(pace.rate**nth for nth in range(1, len(drafts) + 1))
        return drafts

    def note(self, request: Request, num_drafts: int, num_right: int) -> None:
        """Takes what a row found of its guesses."""
        self.num_drafts += num_drafts
        self.num_right += num_right
        request.num_drafts += num_drafts
        request.num_right_drafts += num_right
        if request.drafting is not None:
            request.drafting.pace.note(num_drafts, num_right)

    def observe(self, step: Step, seconds: float) -> None:
        """Takes how long a step took."""
        if self._enabled and step.is_decode:
            self._costs.add(len(step.rows), step.num_tokens - len(step.rows), seconds)

    def end(self, request: Request) -> None:
        """Remembers the answer of a request that has ended."""
        if self._histories is not None and request.drafting is not None and request.num_output_tokens > self._size:
            self._histories.add(request.cache_salt, request.token_ids[request.num_prompt_tokens :])


def _may_have_drafts(request: Request) -> bool:
    """Not where penalties count what was sampled, nor where a grammar binds a request whose tokens are biased or banned
    by id: a sample behind a draft has a mask of its own instead of its slot's tables."""
    params = request.sampling
    is_biased = bool(params.logit_bias or params.allowed_token_ids)
    return not request.has_penalties and not (request.is_constrained and is_biased)


def _followed(request: Request, drafts: list[int]) -> list[int]:
    """The first of the drafts that a request's grammar lets come. What it forces is taken without being sampled, so no
    draft may stand before that; nor one that ends the request."""
    stands, at = list[TokenConstraint](), request.constraint
    for draft in drafts:
        at = at.ahead(draft) if at is not None and draft not in request.stop_token_ids else None
        if at is None:
            break
        stands.append(at)
    request.constraints_ahead = stands
    return drafts[: len(stands)]
