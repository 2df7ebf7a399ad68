"""What the benchmark of schemas takes for valid, cut and refused."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.schemas import Tally, is_valid

SCHEMA = {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 0.1}}, "required": ["a"]}


def answered(text: str, ending: str = "stop") -> dict[str, Any]:
    return {"choices": [{"finish_reason": ending, "message": {"content": text}}]}


def refused(param: str | None) -> dict[str, Any]:
    return {"error": {"message": "not is not enforced", "param": param}}


@pytest.mark.parametrize(
    ("text", "valid"), [('{"a": 0.3}', True), ('{"a": 0.31}', False), ("{}", False), ('{"a": 0.3', False)]
)
def test_numbers_are_taken_exactly(text: str, valid: bool) -> None:
    assert is_valid(text, SCHEMA) is valid


def test_what_ended_has_to_be_valid() -> None:
    tally = Tally()
    tally.add(SCHEMA, 0, 200, answered('{"a": 1}'))
    tally.add(SCHEMA, 1, 200, answered('{"a": ', "length"))
    assert (tally.endings, tally.faults) == ({"stop": 1, "length": 1}, [])
    tally.add(SCHEMA, 2, 200, answered('{"a": '))
    tally.add(SCHEMA, 3, 200, answered('{"a": 1}', "tool_calls"))
    tally.add(SCHEMA, 4, 503, {"error": {"message": "no engine"}})
    assert tally.num_faults == len(tally.faults) == 3


def test_a_refusal_has_to_name_its_place() -> None:
    tally = Tally()
    tally.add({"not": {}}, 0, 400, refused("response_format.json_schema.schema/not"))
    assert (tally.endings["refused"], tally.faults) == (1, [])
    tally.add({"not": {}}, 0, 400, refused(None))
    assert (tally.endings["refused"], tally.num_faults) == (2, 1)
    assert tally.refusals == {"not is not enforced": 2}
