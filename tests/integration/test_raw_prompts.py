"""Prompts that a client rendered itself, against a real server with the real model."""

from __future__ import annotations

from typing import Any

import httpx

from tests.integration.server import Server

QUESTION = "Say only the word yes."
SYSTEM = "You are a helpful assistant."
RENDERED = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_rendered_prompt_is_answered_as_the_conversation(server: Server) -> None:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    chat = post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 32, "temperature": 0})
    text = chat["choices"][0]["message"]["content"]
    prompt_tokens = chat["usage"]["prompt_tokens"]
    completion = post(server, "/v1/completions", {"prompt": RENDERED, "max_tokens": 32, "temperature": 0})
    assert completion["choices"][0]["text"] == text
    assert completion["choices"][0]["finish_reason"] == chat["choices"][0]["finish_reason"]
    assert completion["usage"]["prompt_tokens"] == prompt_tokens
    tokenized = post(server, "/tokenize", {"prompt": RENDERED})
    assert tokenized["count"] == prompt_tokens
    details = {"details": True, "decoder_input_details": True, "max_new_tokens": 32}
    generated = post(server, "/generate", {"inputs": RENDERED, "parameters": details})
    assert generated["generated_text"] == text
    assert [token["id"] for token in generated["details"]["prefill"]] == tokenized["tokens"]


def test_every_control_token_of_a_text_is_one_token(server: Server) -> None:
    prompt = "<repo_name>hello<file_sep>main.py\nprint("
    parsed = post(server, "/v1/completions", {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0})
    tokens = parsed["choices"][0]["logprobs"]["tokens"]
    assert {"<repo_name>", "<file_sep>"} <= set(tokens)
    assert "".join(tokens) == parsed["choices"][0]["text"] == prompt
    plain = post(server, "/v1/completions", {"prompt": prompt, "max_tokens": 1, "parse_special": False})
    assert plain["usage"]["prompt_tokens"] > parsed["usage"]["prompt_tokens"]


def test_a_control_token_as_stop_string(server: Server) -> None:
    body = {"prompt": "a b c", "max_tokens": 6, "temperature": 0, "logit_bias": {"1": 100}, "stop": ["<|im_start|>"]}
    answer = post(server, "/v1/completions", body)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "stop")
    assert answer["usage"]["completion_tokens"] == 1
    late = post(server, "/v1/completions", {**body, "min_tokens": 3})
    assert late["choices"][0]["finish_reason"] == "stop"
    assert late["usage"]["completion_tokens"] == 4  # masked before, though its bias makes it certain
