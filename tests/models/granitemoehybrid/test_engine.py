"""Mamba-2's states under the engine, by a real model: conversations hit what there is."""

from __future__ import annotations

from pathlib import Path

from tests.models.scheduled import TOKENS, answers, engine_of
from tests.models.tiny import make_reference, save

BLOCK = 16


def test_turns_of_a_conversation_hit_what_there_is(tmp_path: Path) -> None:
    checkpoint = save(make_reference("granitemoehybrid_groups"), tmp_path)
    engine = engine_of(checkpoint)
    said, could_hit = list[int](), 0
    for turn in range(5):
        said += TOKENS[turn * 9 : turn * 9 + 9]
        could_hit += (len(said) - 10) // BLOCK * BLOCK if turn else 0  # the last token of an answer is not computed
        [answer] = answers(engine, [said], 11)
        said += answer
    assert 0.8 * could_hit < engine.stats().prefix_hit_tokens_total <= could_hit
    [alone] = answers(engine_of(checkpoint, enable_prefix_caching=False), [said[:-11]], 11)
    assert said[-11:] == alone
