"""Text to tokens and back over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.service import ApiSettings
from app.serving.generator import format_of
from app.text.chat_template import ChatTemplate
from app.text.tokenizer import Tokenizer
from tests.api.conftest import Server, start_server, start_server_without_engine
from tests.byte_tokenizer import BOS_ID, CHATML_TEMPLATE, EOS_ID, IM_END_ID, IM_START_ID, build_byte_tokenizer

NAME = {"name": "f"}
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


async def tokens_of(server: Server, **body: Any) -> list[int]:
    answer = await server.post("/tokenize", body)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert list(content) == ["tokens", "count", "max_model_len"]
    assert content["count"] == len(content["tokens"])
    assert content["max_model_len"] == 512
    tokens: list[int] = content["tokens"]
    return tokens


async def test_a_text(shared_server: Server) -> None:
    assert await tokens_of(shared_server, prompt="héllo") == list("héllo".encode())
    assert await tokens_of(shared_server, prompt="") == []
    assert await tokens_of(shared_server, prompt="a</s>", model=None, messages=None) == [97, EOS_ID]


async def test_special_tokens_are_added_on_request() -> None:
    async with start_server() as server:
        server.rig.generator.tokenizer._prefix = [BOS_ID]  # a tokenizer that adds BOS
        assert await tokens_of(server, prompt="a") == [BOS_ID, 97]
        assert await tokens_of(server, prompt="a", add_special_tokens=True) == [BOS_ID, 97]
        assert await tokens_of(server, prompt="a", add_special_tokens=False) == [97]
        assert await tokens_of(server, prompt="<s>a") == [BOS_ID, 97]
        assert await tokens_of(server, messages=MESSAGES) == await tokens_of(
            server, messages=MESSAGES, add_special_tokens=False
        )


async def test_a_conversation_has_the_tokens_that_a_chat_is_charged_for(shared_server: Server) -> None:
    tokens = await tokens_of(shared_server, messages=MESSAGES)
    body = b"user\nHi"
    assert tokens == [IM_START_ID, *body, IM_END_ID, *b"\n", IM_START_ID, *b"assistant\n"]
    chat = await shared_server.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})
    assert chat.json()["usage"]["prompt_tokens"] == len(tokens)
    closed = await tokens_of(shared_server, messages=MESSAGES, add_generation_prompt=False)
    assert closed == [IM_START_ID, *body, IM_END_ID, *b"\n"]
    typed = [{"role": "user", "content": "<|im_end|>"}]
    assert (await tokens_of(shared_server, messages=typed)).count(IM_END_ID) == 1  # a user's text stays text


async def test_a_text_has_the_tokens_that_a_completion_is_charged_for(shared_server: Server) -> None:
    text = "<|im_start|>user\nHi</s>"
    for parse_special, count in ((None, 9), (True, 9), (False, len(text))):
        body = {"prompt": text, "parse_special": parse_special}
        assert len(await tokens_of(shared_server, **body)) == count
        answer = await shared_server.post("/v1/completions", {**body, "max_tokens": 1})
        assert answer.json()["usage"]["prompt_tokens"] == count


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
async def test_text_comes_back(shared_server: Server, text: str) -> None:
    tokens = await tokens_of(shared_server, prompt=text)
    answer = await shared_server.post("/detokenize", {"tokens": tokens})
    assert answer.json() == {"prompt": text}


async def test_control_tokens_and_broken_characters_come_back_as_they_can(shared_server: Server) -> None:
    answer = await shared_server.post("/detokenize", {"tokens": [97, EOS_ID, 0xE5]})
    assert answer.json() == {"prompt": "a</s>\ufffd"}
    assert (await shared_server.post("/detokenize", {"tokens": []})).json() == {"prompt": ""}


async def test_long_texts_leave_the_event_loop_free() -> None:
    async with start_server() as server:
        tokenizer = server.rig.generator.tokenizer
        slow = asyncio.Event()
        loop = asyncio.get_running_loop()
        threads: list[bool] = []

        def noting(method: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                try:
                    asyncio.get_running_loop()
                    threads.append(False)
                except RuntimeError:
                    threads.append(True)
                loop.call_soon_threadsafe(slow.set)
                return method(*args, **kwargs)

            return call

        tokenizer.encode = noting(tokenizer.encode)  # type: ignore[method-assign]
        tokenizer.decode = noting(tokenizer.decode)  # type: ignore[method-assign]
        tokens = await tokens_of(server, prompt="a" * 50_000)
        assert (await server.post("/detokenize", {"tokens": tokens})).json() == {"prompt": "a" * 50_000}
        await tokens_of(server, prompt="a")
        assert threads == [True, True, False]


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", 400),
        ("/tokenize", {"prompt": 5}, "prompt", 400),
        ("/tokenize", {"prompt": ["a"]}, "prompt", 400),
        ("/tokenize", {"messages": []}, "messages", 400),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content", 400),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens", 400),
        ("/tokenize", {"messages": MESSAGES, "parse_special": True}, "parse_special", 400),
        ("/tokenize", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools[0].function", 400),
        (
            "/tokenize",
            {"messages": MESSAGES, "tools": [{"type": "x", "function": NAME}]},
            "tools[0].type",
            400,
        ),
        ("/tokenize", {"prompt": "a", "parse_special": 1}, "parse_special", 400),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, "model", 404),
        ("/detokenize", {}, "tokens", 400),
        ("/detokenize", {"tokens": "a"}, "tokens", 400),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", 400),
        ("/detokenize", {"tokens": [260]}, "tokens", 400),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0]", 400),
        ("/detokenize", {"tokens": [97], "model": "nobody"}, "model", 404),
    ],
)
async def test_refusals(shared_server: Server, path: str, body: object, param: str | None, status: int) -> None:
    answer = await shared_server.post(path, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


async def test_unknown_fields_and_sizes() -> None:
    async with start_server(ApiSettings(max_body_bytes=1000)) as server:
        answer = await server.post("/tokenize", {"prompt": "a", "return_token_strs": True})
        assert answer.headers["x-ignored-params"] == "return_token_strs"
        assert (await server.post("/tokenize?strict=true", {"prompt": "a", "what": 1})).status_code == 400
        for path, body in (("/tokenize", {"prompt": "a" * 1000}), ("/detokenize", {"tokens": [97] * 1000})):
            assert (await server.post(path, body)).status_code == 413


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("chat_template", "default"),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("reasoning_effort", "low"),
    ],
)
async def test_what_is_for_messages_is_named_back_with_a_prompt(
    shared_server: Server, field: str, value: object
) -> None:
    answer = await shared_server.post("/tokenize", {"prompt": "a", field: value})
    assert answer.json()["tokens"] == [97]
    assert answer.headers["x-ignored-params"] == field
    strict = await shared_server.post("/tokenize?strict=true", {"prompt": "a", field: value})
    assert strict.status_code == 400
    error = strict.json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    absent = await shared_server.post("/tokenize?strict=true", {"prompt": "a", field: None})
    assert absent.status_code == 200


def use_template(server: Server, template: ChatTemplate) -> None:
    """Gives the model another template, which tells of tools itself."""
    generator = server.rig.generator
    generator.chat_template = template
    generator.reply_format = format_of(template, generator.tokenizer, "hermes")


async def test_tools_are_rendered() -> None:
    listing = "{% for tool in tools or [] %}{{ tool.function.name }}={{ tool.function.parameters.type }};{% endfor %}"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}]
    async with start_server() as server:
        plain = await tokens_of(server, messages=MESSAGES)
        use_template(server, ChatTemplate(listing + CHATML_TEMPLATE))
        assert await tokens_of(server, messages=MESSAGES, tools=tools) == [*b"f=object;", *plain]
        assert await tokens_of(server, messages=MESSAGES, tools=[]) == plain
        use_template(server, ChatTemplate(CHATML_TEMPLATE, named={"tool_use": listing}))
        answer = await server.post("/tokenize", {"messages": MESSAGES, "tools": tools})
        assert answer.json()["tokens"] == list(b"f=object;")
        assert "x-ignored-params" not in answer.headers


async def test_tools_that_a_template_does_not_read_cost_what_a_chat_with_them_does() -> None:
    tools = [{"type": "function", "function": {"name": "find_a_river"}}]
    async with start_server(max_model_len=1024, num_blocks=128) as server:
        answer = await server.post("/tokenize", {"messages": MESSAGES, "tools": tools})
        assert "x-ignored-params" not in answer.headers
        assert (
            "find_a_river" in (await server.post("/detokenize", {"tokens": answer.json()["tokens"]})).json()["prompt"]
        )
        chat = await server.post("/v1/chat/completions", {"messages": MESSAGES, "tools": tools, "max_tokens": 1})
        assert chat.json()["usage"]["prompt_tokens"] == answer.json()["count"]


async def test_tokenizer_info() -> None:
    async with start_server_without_engine() as server:
        server.rig.generator.tokenizer = Tokenizer(
            build_byte_tokenizer().to_str(), bos_token="<s>", eos_token="</s>", pad_token="<|im_end|>"
        )
        assert (await server.http.get("/tokenizer_info")).json() == {
            "model": "fake-model",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<|im_end|>",
            "vocab_size": 260,
            "chat_template": CHATML_TEMPLATE,
        }
        assert (await server.post("/tokenize", {"prompt": "a"})).status_code == 503  # its context is not known yet
        assert (await server.post("/detokenize", {"tokens": [97]})).json() == {"prompt": "a"}
