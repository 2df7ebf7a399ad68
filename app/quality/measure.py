"""Perplexity and the most likely tokens of a text, by the engine that serves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.contract.request import SamplingParams
from app.llm import LLM

WINDOW = 1024
"""Tokens that are predicted from each other; the first of each window is predicted from nothing and not counted."""
_PARAMS = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)


@dataclass(frozen=True, slots=True)
class Score:
    """A text under a model."""

    num_tokens: int
    """Number of tokens that were predicted."""
    log_likelihood: float
    """Natural logarithm of the likelihood of all predicted tokens together."""
    top_ids: tuple[int, ...]
    """The most likely token at each position."""

    @property
    def perplexity(self) -> float:
        """Perplexity: exp of the mean negative log-likelihood of a token."""
        return math.exp(-self.log_likelihood / self.num_tokens)

    def agreement(self, other: Score) -> float:
        """Share of positions at which both have the same most likely token."""
        pairs = zip(self.top_ids, other.top_ids, strict=True)
        return sum(mine == theirs for mine, theirs in pairs) / self.num_tokens


def score(llm: LLM, token_ids: Sequence[int], *, window: int = WINDOW) -> Score:
    """Predicts every token of a text from those before it in its window."""
    windows = [list(token_ids[start : start + window]) for start in range(0, len(token_ids), window)]
    completions = llm.generate([part for part in windows if len(part) > 1], _PARAMS)
    logprobs: list[float] = []
    top_ids: list[int] = []
    for completion in completions:
        for token in completion.prompt_logprobs or ():
            if token.logprob is not None:
                logprobs.append(token.logprob)
                top_ids.append(max(token.top, key=lambda alternative: alternative.logprob or -math.inf).token_id)
    return Score(len(logprobs), math.fsum(logprobs), tuple(top_ids))
