"""What lm-eval's ``local-completions`` model and its remote tokenizer send, and how they read the answers."""

from __future__ import annotations

import asyncio
from operator import itemgetter
from typing import Any

import pytest

from app.contract.frames import TokenLogprobs
from app.text.tokenizer import Tokenizer
from tests.api.conftest import Server, start_server
from tests.byte_tokenizer import BOS_ID, EOS_ID, EOS_TOKEN, build_byte_tokenizer
from tests.fakes import FakeRunner
from tests.serving.rig import MODEL

Score = tuple[float, bool]


async def loglikelihoods(server: Server, pairs: list[tuple[list[int], list[int]]]) -> list[Score]:
    """Scores of continuations given contexts: summed log-probability, and whether greedy decoding would say it."""
    body = {
        "model": MODEL,
        "prompt": [context + continuation for context, continuation in pairs],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = await server.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    assert "x-ignored-params" not in answer.headers
    choices = sorted(answer.json()["choices"], key=itemgetter("index"))
    assert len(choices) == len(pairs)
    scores = []
    for choice, (context, continuation) in zip(choices, pairs, strict=True):
        scored = slice(len(context), -1)
        logprobs = choice["logprobs"]["token_logprobs"][scored]
        tops = choice["logprobs"]["top_logprobs"][scored]
        assert len(logprobs) == len(tops) == len(continuation)
        greedy = all(value == max(top.values()) for value, top in zip(logprobs, tops, strict=True))
        scores.append((sum(logprobs), greedy))
    return scores


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A "model" whose log-probabilities tell tokens apart; it would say even ids itself, odd ones are second best."""

    def logprobs(self: FakeRunner, target: int, num_top: int) -> TokenLogprobs:
        likeliest = -0.1 - (target // 2) / 1000
        is_greedy = target % 2 == 0
        top = [(target if is_greedy else target - 1, likeliest)][:num_top]
        return TokenLogprobs(target, likeliest if is_greedy else likeliest - 1.7, 1 if is_greedy else 2, top)

    monkeypatch.setattr(FakeRunner, "_logprobs", logprobs)


def expected(continuation: list[int]) -> Score:
    """By the rules of :func:`scoring`."""
    value = sum(-0.1 - (token // 2) / 1000 - (0 if token % 2 == 0 else 1.7) for token in continuation)
    return value, all(token % 2 == 0 for token in continuation)


@pytest.mark.usefixtures("scoring")
async def test_scores_of_a_batch(server: Server) -> None:
    pairs = [([97, 98, 99], [100, 102]), ([97], [99, 100, 101]), ([BOS_ID], [104]), (list(b"x" * 40), [121])]
    for (value, greedy), (_, continuation) in zip(await loglikelihoods(server, pairs), pairs, strict=True):
        assert value == pytest.approx(expected(continuation)[0], abs=1e-6)
        assert greedy == expected(continuation)[1]


@pytest.mark.usefixtures("scoring")
async def test_scores_do_not_depend_on_company_or_cache(server: Server) -> None:
    pairs = [([*b"a context of more than one block ", i], [i, i + 1]) for i in range(100, 106)]
    alone = [(await loglikelihoods(server, [pair]))[0] for pair in pairs]
    assert await loglikelihoods(server, pairs) == alone
    together = await asyncio.gather(*(loglikelihoods(server, [pair]) for pair in pairs))
    assert [score for (score,) in together] == alone


async def test_the_greedy_test_survives_tokens_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two invalid bytes both decode to U+FFFD, and two ids may spell the same text."""

    def logprobs(self: FakeRunner, target: int, num_top: int) -> TokenLogprobs:
        return TokenLogprobs(target, -3.0, 2, [(0xE5 if target != 0xE5 else 0xE6, -0.25)][:num_top])

    monkeypatch.setattr(FakeRunner, "_logprobs", logprobs)
    async with start_server() as server:
        scores = await loglikelihoods(server, [([97], [0xE5]), ([97], [0xE6]), ([97], [98])])
    assert scores == [(-3.0, False)] * 3


async def test_exact_floats_survive_json(monkeypatch: pytest.MonkeyPatch) -> None:
    value = -0.30000001192092896

    def logprobs(self: FakeRunner, target: int, num_top: int) -> TokenLogprobs:
        return TokenLogprobs(target, value, 1, [(target, value)][:num_top])

    monkeypatch.setattr(FakeRunner, "_logprobs", logprobs)
    async with start_server() as server:
        assert await loglikelihoods(server, [([97], [98])]) == [(value, True)]


async def test_the_longest_sequence_that_it_sends_fits(server: Server) -> None:
    """It cuts contexts so that one token of answer is left."""
    context = [97] * (512 - 2)
    assert len(await loglikelihoods(server, [(context, [98])])) == 1


async def test_generation(server: Server) -> None:
    body = {
        "prompt": [list(b"Q: x\nA:"), list(b"Q: yz\nA:")],
        "model": MODEL,
        "max_tokens": 16,
        "temperature": 0,
        "stop": ["\n\n", "Q:", EOS_TOKEN],
        "seed": 1234,
    }
    answer = (await server.post("/v1/completions", body)).json()
    texts: list[Any] = [None] * len(answer["choices"])
    for choice in answer["choices"]:
        texts[choice["index"]] = choice["text"]
    assert all(isinstance(text, str) and text for text in texts)


async def test_remote_tokenizer() -> None:
    async with start_server() as server:
        server.rig.generator.tokenizer = Tokenizer(
            build_byte_tokenizer().to_str(), add_bos=True, bos_token="<s>", eos_token=EOS_TOKEN
        )

        async def encode(text: str) -> list[int]:
            answer = await server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
            tokens: list[int] = answer.json()["tokens"]
            return tokens

        info = (await server.http.get("/tokenizer_info")).json()
        assert {"eos_token", "bos_token", "pad_token", "chat_template"} <= set(info)
        assert await encode(info["eos_token"]) == [EOS_ID]
        assert await encode(info["bos_token"]) == [BOS_ID]
        assert await encode("test") == list(b"test")
        # Context and continuation are encoded as one text and cut where the context alone ends.
        whole, context = await encode("Q: x A: y"), await encode("Q: x A:")
        assert whole[: len(context)] == context
        back = await server.post("/detokenize", {"tokens": whole})
        assert back.json() == {"prompt": "Q: x A: y"}
