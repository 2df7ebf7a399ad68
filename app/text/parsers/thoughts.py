"""Forms in which models mark their thought: a row each. Harmony has its own (:mod:`app.text.parsers.harmony`)."""

from __future__ import annotations

from app.text.parsers.format import ThoughtFormat

THOUGHTS = (
    ThoughtFormat(
        name="mistral",
        opening="[THINK]",
        closing="[/THINK]",
        tells=("[THINK]",),
        control=("[THINK]", "[/THINK]"),
    ),
    ThoughtFormat(
        name="gemma4",
        opening="<|channel>thought",
        closing="<channel|>",
        tells=("<|channel>thought", "<channel|>"),
        control=("<|channel>", "<channel|>"),
    ),
    ThoughtFormat(
        name="seed",
        opening="<seed:think>",
        closing="</seed:think>",
        tells=("<seed:think>",),
        control=("<seed:think>", "</seed:think>"),
    ),
    ThoughtFormat(
        name="think",
        opening="<think>",
        closing="</think>",
        tells=("<think>", "</think>"),
        control=("<think>", "</think>"),
    ),
)
"""The first that a model's template has signs of is the model's."""
