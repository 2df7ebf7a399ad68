"""Fields that applications send whatever the model: heeded, named back or refused, by both endpoints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.text.chat_template import ChatTemplate
from tests.api.conftest import Server
from tests.serving.rig import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
PROMPTS: dict[str, Any] = {CHAT: {"messages": MESSAGES}, COMPLETIONS: {"prompt": "Hello"}}
BOTH = pytest.mark.parametrize("path", [CHAT, COMPLETIONS])


async def answer(server: Server, path: str, **fields: Any) -> dict[str, Any]:
    """The answer to a prompt with these fields, none of which is ignored."""
    response = await server.post(path, {**PROMPTS[path], **fields})
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    content: dict[str, Any] = response.json()
    return content


def sampling_of(server: Server) -> Any:
    """How the engine was last asked to sample."""
    assert server.rig.runner is not None
    return [slot.sampling for step in server.rig.runner.steps for slot in step.slots][-1]


@BOTH
@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens", "max_new_tokens", "n_predict"])
async def test_the_most_tokens_by_any_name(server: Server, path: str, name: str) -> None:
    short = await answer(server, path, **{name: 3})
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (3, "length")
    usage = (await answer(server, path, **{name: -1}))["usage"]
    assert usage["total_tokens"] == server.rig.generator.max_model_len


@BOTH
async def test_the_first_of_several_names_is_heeded(shared_server: Server, path: str) -> None:
    for given, expected in (
        ({"n_predict": 6, "max_new_tokens": 5}, 5),
        ({"max_new_tokens": -1, "max_tokens": 4}, 4),
        ({"max_tokens": -1, "max_completion_tokens": 3}, 3),
    ):
        assert (await answer(shared_server, path, **given))["usage"]["completion_tokens"] == expected


async def test_an_sdk_may_ask_for_all_that_fit(shared_server: Server) -> None:
    chat = await shared_server.openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=-1)
    assert chat.usage is not None
    assert chat.usage.total_tokens == shared_server.rig.generator.max_model_len


@BOTH
async def test_values_that_other_servers_take(server: Server, path: str) -> None:
    nothing: dict[str, Any]
    for nothing in ({"stop": ""}, {"stop": []}, {"response_format": {}}):
        usage = (await answer(server, path, max_tokens=3, **nothing))["usage"]
        assert usage["completion_tokens"] == 3
    await answer(server, path, max_tokens=1, temperature=100)
    assert sampling_of(server).temperature == 100
    await answer(server, path, max_tokens=1, temperature=0.7, top_p=0)
    assert (sampling_of(server).temperature, sampling_of(server).top_p) == (0, 1)


async def test_an_sdk_may_send_such_values(shared_server: Server) -> None:
    fields: Any = {"reasoning_effort": "minimal", "verbosity": "low", "temperature": 2.5, "top_p": 0, "stop": ""}
    raw = await shared_server.openai.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, max_tokens=2, **fields
    )
    assert set(raw.headers["x-ignored-params"].split(", ")) == {"reasoning_effort", "verbosity"}
    completion = raw.parse()
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2


async def test_variables_that_the_chat_template_does_not_read_are_named_back(server: Server) -> None:
    server.rig.generator.chat_template = ChatTemplate(
        "{% if mood %}{{ mood }}{% endif %}{{ messages[0].content }}", named={"deep": "{{ reasoning_effort }}"}
    )
    variables = {"mood": "merry", "tone": "high"}
    for path in (CHAT, "/tokenize"):
        fields = {"messages": MESSAGES, "chat_template_kwargs": variables, "reasoning_effort": "high"}
        named = "chat_template_kwargs.tone, reasoning_effort"
        response = await server.post(path, fields)
        assert (response.status_code, response.headers["x-ignored-params"]) == (200, named)
        refused = await server.post(path + "?strict=true", fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_template_kwargs.tone")
        fields |= {"chat_template": "deep", "chat_template_kwargs": {}}
        response = await server.post(path + "?strict=true", fields)
        assert (response.status_code, response.headers.get("x-ignored-params")) == (200, None)
        taken = await server.post(path, {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}})
        assert (taken.status_code, taken.json()["error"]["param"]) == (400, "chat_template_kwargs")


async def test_a_reasoning_effort_reaches_a_template_that_reads_it(server: Server) -> None:
    server.rig.generator.chat_template = ChatTemplate("{{ reasoning_effort }}")

    async def prompt(**fields: Any) -> str:
        tokens = (await server.post("/tokenize", {"messages": MESSAGES, **fields})).json()["tokens"]
        assert (await answer(server, CHAT, max_tokens=1, **fields))["usage"]["prompt_tokens"] == len(tokens)
        return bytes(tokens).decode()

    assert await prompt(reasoning_effort="extreme") == "extreme"
    assert await prompt(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high"}) == "high"


async def test_results_of_tools_and_functions_are_history(server: Server) -> None:
    call = {"name": "now", "arguments": "{}"}
    asked = {"role": "user", "content": "Time?"}
    tools = [
        asked,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call00001", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "call00001", "content": "Noon."},
    ]
    functions = [
        asked,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "now", "content": "Noon."},
    ]
    server.rig.generator.chat_template = ChatTemplate(
        "{% for message in messages %}{{ message.role }}:{{ message.content }}"
        "{% for call in message.tool_calls %}{{ call.id }}{{ call.function.name }}{% endfor %}"
        "{{ message.tool_call_id }}{{ message.function_call }};{% endfor %}"
    )
    expected = "user:Time?;assistant:call00001now;tool:Noon.call00001;"
    for history in (tools, functions):
        tokens = (await server.post("/tokenize", {"messages": history})).json()["tokens"]
        assert bytes(tokens).decode() == expected
        messages: Any = history
        chat = await server.openai.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
        assert chat.usage is not None
        assert chat.usage.prompt_tokens == len(expected)


async def test_a_tool_may_have_nothing_to_say(shared_server: Server) -> None:
    for role in ("tool", "function"):
        messages = [*MESSAGES, {"role": role, "name": "now", "content": None}]
        await answer(shared_server, CHAT, messages=messages, max_tokens=1)


@BOTH
async def test_token_ids_of_prompt_and_answer(server: Server, path: str) -> None:
    fields = {"max_tokens": 12, "return_token_ids": True, "n": 2}
    whole = await answer(server, path, **fields)
    assert server.rig.runner is not None
    prompt = list(server.rig.runner.steps[0].rows[0].token_ids or [])
    expected = [choice["token_ids"] for choice in whole["choices"]]
    assert [len(token_ids) for token_ids in expected] == [12, 12]
    choice = whole["choices"][0]
    text = choice["message"]["content"] if path == CHAT else choice["text"]
    assert bytes(expected[0]).decode(errors="replace").startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert (whole if path == CHAT else choice)["prompt_token_ids"] == prompt
    response = await server.post(path, {**PROMPTS[path], **fields, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    streamed: list[list[int]] = [[], []]
    for chunk in chunks:
        for part in chunk["choices"]:
            streamed[part["index"]] += part["token_ids"]
    assert streamed == expected
    named = chunks if path == CHAT else [part for chunk in chunks for part in chunk["choices"]]
    shown = [each["prompt_token_ids"] for each in named if "prompt_token_ids" in each]
    assert shown == [prompt] * (1 if path == CHAT else 2)
    plain = await answer(server, path, max_tokens=1)
    assert not {"token_ids", "prompt_token_ids", "prompt_logprobs"} & (plain.keys() | plain["choices"][0].keys())


@BOTH
async def test_tokens_named_by_their_ids(shared_server: Server, path: str) -> None:
    logprobs = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    ids = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = (await answer(shared_server, path, max_tokens=5, **logprobs, **ids))["choices"][0]
    expected = [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    if path == CHAT:
        tokens = choice["logprobs"]["content"]
        assert [token["token"] for token in tokens] == expected
        assert all(top["token"].startswith("token_id:") for token in tokens for top in token["top_logprobs"])
    else:
        assert choice["logprobs"]["tokens"] == expected
        for name, top in zip(expected, choice["logprobs"]["top_logprobs"], strict=True):
            assert name in top
            assert all(key.startswith("token_id:") for key in top)


@BOTH
async def test_logprobs_of_a_prompt(shared_server: Server, path: str) -> None:
    fields = {"max_tokens": 1, "prompt_logprobs": 2, "return_token_ids": True}
    whole = await answer(shared_server, path, **fields)
    holder = whole if path == CHAT else whole["choices"][0]
    first, *places = holder["prompt_logprobs"]
    assert first is None
    assert len(places) == len(holder["prompt_token_ids"]) - 1
    for token_id, place in zip(holder["prompt_token_ids"][1:], places, strict=True):
        assert str(token_id) in place
        assert 2 <= len(place) <= 3
        ranks = {each["rank"]: each["logprob"] for each in place.values()}
        assert {1, 2} <= ranks.keys()
        assert ranks[1] == max(ranks.values())
    assert "prompt_logprobs" not in (await answer(shared_server, path, max_tokens=1))
    streamed = await shared_server.post(path, {**PROMPTS[path], **fields, "stream": True})
    assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "prompt_logprobs")
    many = await shared_server.post(path, {**PROMPTS[path], "prompt_logprobs": 21})
    assert (many.status_code, many.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_an_echo_and_the_logprobs_of_its_prompt(shared_server: Server) -> None:
    echo = {"max_tokens": 1, "logprobs": 1, "echo": True}
    plain = (await answer(shared_server, COMPLETIONS, **echo))["choices"][0]
    both = (await answer(shared_server, COMPLETIONS, **echo, prompt_logprobs=5))["choices"][0]
    assert both["logprobs"] == plain["logprobs"]
    assert len(both["prompt_logprobs"][1]) >= 5


@BOTH
async def test_long_prompts_may_be_cut_at_their_beginning(server: Server, path: str) -> None:
    long: dict[str, Any] = {
        CHAT: {"messages": [{"role": "user", "content": "x" * 600}]},
        COMPLETIONS: {"prompt": "x" * 600},
    }
    whole = await answer(server, path, **long[path], max_tokens=1, truncate_prompt_tokens=20, return_token_ids=True)
    kept = (whole if path == CHAT else whole["choices"][0])["prompt_token_ids"]
    assert whole["usage"]["prompt_tokens"] == len(kept) == 20
    assert kept[-1] == (ord("\n") if path == CHAT else ord("x"))
    over = await server.post(path, {**long[path], "max_tokens": 1, "truncate_prompt_tokens": 600})
    assert (over.status_code, over.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_cut_prompt_of_ids_and_no_echo_of_it(shared_server: Server) -> None:
    cut = {"prompt": [[97] * 600, [98] * 3], "max_tokens": 1, "truncate_prompt_tokens": 5}
    assert (await answer(shared_server, COMPLETIONS, **cut))["usage"]["prompt_tokens"] == 5 + 3
    refused = await shared_server.post(COMPLETIONS, {**cut, "echo": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "truncate_prompt_tokens")


async def test_a_chat_may_echo_the_answer_that_it_goes_on_with(shared_server: Server) -> None:
    begun: Any = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    body = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False, "max_tokens": 9}
    plain = (await answer(shared_server, CHAT, **body))["choices"][0]["message"]["content"]
    echoed = (await answer(shared_server, CHAT, **body, echo=True))["choices"][0]["message"]["content"]
    assert echoed == "Well, " + plain
    stream = await shared_server.openai.chat.completions.create(
        model=MODEL,
        messages=begun,
        max_tokens=9,
        n=2,
        stream=True,
        extra_body={"continue_final_message": True, "echo": True},
    )
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [echoed, echoed]
    question = await answer(shared_server, CHAT, max_tokens=9, echo=True)
    assert question["choices"] == (await answer(shared_server, CHAT, max_tokens=9))["choices"]


async def test_a_turn_cannot_be_both_opened_and_gone_on_with(shared_server: Server) -> None:
    fields = {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True}
    refused = await shared_server.post(CHAT, fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "continue_final_message")


@BOTH
@pytest.mark.parametrize(("field", "value"), [("logits_processors", ["a"])])
async def test_what_the_engine_cannot_do_is_refused(
    shared_server: Server, path: str, field: str, value: object
) -> None:
    refused = await shared_server.post(path, {**PROMPTS[path], field: value})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
    assert refused.json()["error"]["code"] == "unsupported_parameter"
