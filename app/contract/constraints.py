"""What a grammar may take, wherever llguidance reads it: in the trial of the API process and in the engine."""

from __future__ import annotations

from typing import Any, Final

PARSER_LIMITS: Final[dict[str, Any]] = {
    "max_items_in_row": 1_000,
    "initial_lexer_fuel": 400_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""What a grammar may take to compile, and a step of it to compute; beyond that it is refused, or its request ends. An
object of 250 optional properties still fits a row; what an ambiguous row costs grows with the third power of it."""
