"""What the benchmark of tool calls takes for valid, invalid and cut."""

from __future__ import annotations

import json

import jsonschema
import pytest

from benchmarks.called_tools import TOOLS, Tool
from benchmarks.tool_calls import MODES, Call, Reply, Tally, check, request

WEATHER = next(tool for tool in TOOLS if tool.name == "get_weather")
VALID = Call("get_weather", json.dumps(WEATHER.example))
INVALID = Call("get_weather", '{"city": "Lima", "unit": "kelvin"}')
BEGUN = Call("get_weather", '{"city": "Li')


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_examples_are_valid_by_their_schemas(tool: Tool) -> None:
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    assert check(Call(tool.name, json.dumps(tool.example)), TOOLS) is None


def test_each_call_is_held_to_its_schema() -> None:
    tally = Tally()
    tally.add("auto", Reply([VALID, INVALID], "tool_calls"), TOOLS)
    tally.add("auto", Reply([VALID], "tool_calls"), [tool for tool in TOOLS if tool is not WEATHER])
    tally.add("auto", Reply([BEGUN], "tool_calls"), TOOLS)
    assert (tally.counts["valid"], tally.counts["invalid"], tally.calls) == (1, 3, 4)
    assert len(tally.faults) == 3


def test_what_was_cut_is_counted_apart() -> None:
    tally = Tally()
    tally.add("required", Reply([VALID, BEGUN], "length"), TOOLS)
    tally.add("required", Reply([], "length"), TOOLS)
    assert (tally.counts["valid"], tally.counts["cut"], tally.faults) == (1, 2, [])


def test_a_required_call_must_come_and_be_told_of() -> None:
    tally = Tally()
    tally.add("auto", Reply([], "stop"), TOOLS)
    tally.add("auto", Reply(refused="too large"), TOOLS)
    assert tally.faults == []
    tally.add("required", Reply([], "stop"), TOOLS)
    tally.add("required", Reply([VALID], "stop"), TOOLS)
    assert len(tally.faults) == 2


@pytest.mark.parametrize("mode", MODES)
def test_requests_repeat_by_their_seed(mode: str) -> None:
    assert request(7, mode, 0, 64) == request(7, mode, 0, 64)
    assert request(7, mode, 0, 64) != request(7, mode, 1, 64)
    body, offered = request(8, mode, 0, 64)
    assert [tool["function"]["name"] for tool in body["tools"]] == [tool.name for tool in offered]
