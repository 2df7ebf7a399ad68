"""A grammar as the engine takes it: Lark texts in llguidance's dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer's text has to match, from its first byte to its end."""

    main: str
    """Lark text with a rule ``start``."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Further Lark texts, each with a rule ``start`` of its own, by the name by which others refer to it: ``@name``."""

    def source(self) -> str:
        """The grammar as a request to the engine carries it, the same text for equal grammars: JSON of llguidance's
        ``{"grammars": [...]}``, the main one first."""
        named = [{"name": name, "lark_grammar": self.parts[name]} for name in sorted(self.parts)]
        return json.dumps({"grammars": [{"lark_grammar": self.main}, *named]}, ensure_ascii=False)
