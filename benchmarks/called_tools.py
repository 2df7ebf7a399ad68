"""Functions that models are given to call, with schemas of the kinds that applications send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function, a question that asks for it, and arguments as an example shows them."""

    name: str
    question: str
    example: dict[str, Any]
    properties: dict[str, Any]
    required: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        return {
            "type": "object",
            "properties": self.properties,
            "required": self.required,
            "additionalProperties": False,
        }

    def definition(self) -> dict[str, Any]:
        """The tool as a request carries it."""
        function = {"name": self.name, "description": self.question, "parameters": self.parameters}
        return {"type": "function", "function": function}


_FILTER = {
    "type": "object",
    "properties": {
        "field": {"enum": ["title", "author", "year"]},
        "negate": {"type": "boolean"},
        "value": {"anyOf": [{"type": "string", "maxLength": 12}, {"type": "integer", "minimum": 0, "maximum": 3000}]},
    },
    "required": ["field", "value"],
    "additionalProperties": False,
}

TOOLS = (
    Tool(
        "get_weather",
        "What is the weather in Lima over the next days?",
        {"city": "Lima", "unit": "celsius", "days": 3},
        {
            "city": {"type": "string", "minLength": 1, "maxLength": 20},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        ["city", "unit"],
    ),
    Tool(
        "add_numbers",
        "Add up a few numbers.",
        {"numbers": [1, 2, 3]},
        {"numbers": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 4}},
        ["numbers"],
    ),
    Tool(
        "book_room",
        "Book a room for a guest, with breakfast.",
        {"guest": {"name": "Ada", "age": 36}, "nights": 2, "breakfast": True},
        {
            "guest": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "maxLength": 20},
                    "age": {"type": "integer", "minimum": 0, "maximum": 150},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
            "nights": {"type": "integer", "minimum": 1, "maximum": 30},
            "breakfast": {"type": "boolean"},
        },
        ["guest", "nights", "breakfast"],
    ),
    Tool(
        "search_books",
        "Search for books about the sea, none of them old.",
        {"query": "the sea", "filters": [{"field": "year", "value": 1990}]},
        {
            "query": {"type": "string", "maxLength": 30},
            "filters": {"type": "array", "items": _FILTER, "maxItems": 2},
        },
        ["query"],
    ),
    Tool(
        "set_light",
        "Set the kitchen's light to a warm colour.",
        {"room": "kitchen", "color": "#ffcc88", "level": 0.5},
        {
            "room": {"enum": ["kitchen", "living room", "bath", "hall"]},
            "color": {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
            "level": {"type": "number", "minimum": 0, "maximum": 1},
        },
        ["room", "color"],
    ),
    Tool(
        "add_note",
        "Note that the rent is to be paid.",
        {"text": "Pay the rent", "tags": ["money"], "due": "2026-03-01"},
        {
            "text": {"type": "string", "maxLength": 40},
            "tags": {"type": "array", "items": {"enum": ["money", "home", "work"]}, "maxItems": 2},
            "due": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        },
        ["text", "due"],
    ),
    Tool(
        "move_to",
        "Move the robot to another place.",
        {"x": 1.5, "y": -2},
        {"x": {"type": "number"}, "y": {"type": "number"}, "speed": {"enum": [1, 2, 5]}},
        ["x", "y"],
    ),
    Tool("ping", "Is the server there?", {}, {}),
)
