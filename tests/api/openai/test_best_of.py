"""``best_of``: how many choices are made, and which of them are the answer."""

from __future__ import annotations

import pytest

from app.api.openai.best_of import best_choices
from app.serving.generation import Completion
from app.serving.types import TokenLogprob
from tests.api.conftest import Server
from tests.serving.rig import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS: dict[str, dict[str, object]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"prompt": ["Hello", "Good day"]},
}


def choice(index: int, *logprobs: float) -> Completion:
    return Completion(index, str(index), tokens=[TokenLogprob(97, "a", b"a", logprob) for logprob in logprobs])


def test_the_likeliest_choices_are_kept_by_the_mean_of_their_tokens() -> None:
    choices = [choice(0, -1.0, -1.0), choice(1, -1.5), choice(2, -0.9, -0.9, -0.9), choice(3, float("-inf"))]
    assert [(each.index, each.text) for each in best_choices(choices, 2)] == [(0, "2"), (1, "0")]
    assert [each.text for each in best_choices(choices, 4)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_all_choices_count_and_the_best_are_the_answer(server: Server, path: str) -> None:
    body = {**PROMPTS[path], "max_tokens": 4, "n": 2, "best_of": 3}
    response = await server.post(path, body)
    assert response.status_code == 200, response.text
    answer = response.json()
    prompts = 1 if path == CHAT else 2
    assert [each["index"] for each in answer["choices"]] == list(range(2 * prompts))
    assert all(each["logprobs"] is None for each in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 3 * 4 * prompts
    for wrong in ({"stream": True}, {"best_of": 1}, {"best_of": 17}):
        refused = await server.post(path, {**body, **wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")


async def test_as_many_as_the_answer_has_is_nothing_to_choose(shared_server: Server) -> None:
    stream = await shared_server.openai.completions.create(
        model=MODEL, prompt="Hello", max_tokens=2, n=2, best_of=2, stream=True
    )
    assert {part.index async for chunk in stream for part in chunk.choices} == {0, 1}
