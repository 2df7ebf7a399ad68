"""The unmodified instructor client against a real server with the real model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.integration.server import Server

instructor = pytest.importorskip("instructor", reason="make clients installs it")

pytestmark = pytest.mark.clients

MODEL = "smollm2-135m"
MESSAGES = [{"role": "user", "content": "Name a river, and say whether it is short or long."}]
MODES = ("TOOLS", "JSON_SCHEMA")


class River(pydantic.BaseModel):
    """A river of the world."""

    name: str = pydantic.Field(max_length=20)
    length: Literal["short", "long"]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, mode: str, **options: Any) -> Any:
    """An answer in the form of a river; nothing is asked twice."""
    patched = instructor.from_openai(client, mode=instructor.Mode[mode])
    return patched.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=128, temperature=0, max_retries=0, **options
    )


@pytest.mark.parametrize("mode", MODES)
def test_answers_have_their_form(client: openai.OpenAI, mode: str) -> None:
    found = ask(client, mode, response_model=River)
    assert isinstance(found, River)
    # Under another name of the tool, which a model may answer otherwise.
    partial = list(ask(client, mode, response_model=instructor.Partial[River], stream=True))
    assert River.model_validate(partial[-1].model_dump())


def test_lists_are_streamed(client: openai.OpenAI) -> None:
    class Letter(pydantic.BaseModel):
        letter: Literal["a", "b"]

    letters = ask(client, "TOOLS", response_model=Iterable[Letter], stream=True)
    assert {letter.letter for letter in itertools.islice(letters, 2)} <= {"a", "b"}
