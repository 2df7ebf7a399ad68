"""``Server-Timing``: where the time of an answer went."""

from __future__ import annotations

import time
from collections.abc import Sequence

from app.serving.generation import Generation
from app.serving.phases import Phases, longest, phases


def generation_phases(generations: Sequence[Generation]) -> Phases:
    """Phases of one request's generations, which run at the same time."""
    now = time.monotonic()
    return longest(phases(generation.timings, now) for generation in generations)


def server_timing(generations: Sequence[Generation]) -> dict[str, str]:
    """The header: milliseconds of each phase that is over, the prompt tokens that came from the prefix cache and, where
    there were guesses, how many of how many were right.

    A stream's headers leave with its first text, so decoding is known of whole answers alone.
    """
    known = generation_phases(generations)
    if any(not generation.ended for generation in generations):
        known = known._replace(decode=None)
    parts = [f"{name};dur={1000 * value:.3f}" for name, value in known._asdict().items() if value is not None]
    cached = sum(generation.usage.cached_tokens for generation in generations)
    parts.append(f'cached_tokens;desc="{cached}"')
    if drafted := sum(generation.usage.draft_tokens for generation in generations):
        right = sum(generation.usage.accepted_draft_tokens for generation in generations)
        parts.append(f'drafts;desc="{right}/{drafted}"')
    return {"server-timing": ", ".join(parts)}
