"""The offline API over a fake runner: the same engine, client and generator as a server's."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import LLM, SamplingParams
from app.contract.config import EngineConfig
from app.contract.frames import LoadProgress
from app.contract.request import FinishReason
from app.errors import RequestError
from app.serving.engine_client import EngineFailedError
from app.store import ModelFiles
from tests.byte_tokenizer import CHATML_TEMPLATE, EOS_ID, EOS_TOKEN, VOCAB_SIZE, write_byte_tokenizer
from tests.fakes import FakeRunner
from tests.serving.rig import repeat

GREEDY = SamplingParams(temperature=0, max_tokens=8)


def make_runner(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
    """Says the alphabet, from wherever the context ends."""
    return FakeRunner(
        vocab_size=VOCAB_SIZE,
        num_blocks=config.num_blocks or 64,
        max_model_len=config.max_model_len or 512,
        next_token=repeat("abcdefghijklmnop"),
    )


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    """A model without weights."""
    return ModelFiles(
        name="tiny",
        directory=tmp_path,
        weights=(),
        config={},
        generation_config={"temperature": 0.5, "top_k": 40},
        tokenizer_file=write_byte_tokenizer(tmp_path),
        chat_template=CHATML_TEMPLATE,
        bos_token=None,
        eos_token=EOS_TOKEN,
        pad_token=None,
        eos_token_ids=(EOS_ID,),
        add_bos=False,
    )


@pytest.fixture
def llm(files: ModelFiles) -> Iterator[LLM]:
    """It, loaded; afterwards none of its threads is left."""
    before = set(threading.enumerate())
    with LLM(files, make_runner=make_runner, integrity_checks=True) as llm:
        yield llm
    assert set(threading.enumerate()) <= before


def test_a_model_that_recommends_nothing_has_a_default_temperature(files: ModelFiles) -> None:
    runners: list[FakeRunner] = []

    def keeping(*args: Any) -> FakeRunner:
        runners.append(make_runner(*args))
        return runners[0]

    bare = dataclasses.replace(files, generation_config={"eos_token_id": 1})
    for recommending, temperature in ((files, 0.5), (bare, 0.6)):
        runners.clear()
        with LLM(recommending, make_runner=keeping) as llm:
            llm.generate("abc")
        assert runners[0].steps[0].slots[0].sampling.temperature == temperature


def test_one_prompt(llm: LLM) -> None:
    (completion,) = llm.generate("abc", GREEDY)
    assert completion.text == "defghijk"
    assert completion.token_ids == list(b"defghijk")
    assert completion.finish_reason is FinishReason.LENGTH


def test_many_prompts_keep_their_order(llm: LLM) -> None:
    completions = llm.generate(["a" * length for length in range(1, 16)], GREEDY, n=2)
    assert len(completions) == 30
    assert [(completion.text[0], completion.index) for completion in completions] == [
        (letter, index) for letter in "bcdefghijklmnop" for index in (0, 1)
    ]


def test_token_ids_are_taken_as_they_are(llm: LLM) -> None:
    assert llm.generate([97, 98, 99], GREEDY)[0].text == "defghijk"
    assert [completion.text[0] for completion in llm.generate([[97], [97, 98]], GREEDY)] == ["b", "c"]
    assert llm.generate([], GREEDY) == []


def test_logprobs_and_stop_strings(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=1, prompt_logprobs=0, stop=("gh",))
    (completion,) = llm.generate("abc", params)
    assert (completion.text, completion.stop_reason) == ("def", "gh")
    assert [token.text for token in completion.tokens] == list("defgh")
    assert completion.prompt_logprobs is not None
    assert [token.text for token in completion.prompt_logprobs] == list("abc")


def test_chat_renders_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    length = 3 + len("user\nhi" + "\n" + "assistant\n")  # three control tokens, and a token a character
    assert llm.chat(messages, GREEDY).text == llm.generate([97] * length, GREEDY)[0].text
    assert len(llm.chat(messages).token_ids) == llm.max_model_len - length


def test_control_tokens_of_a_text_are_parsed_unless_told_otherwise(llm: LLM) -> None:
    text = "<|im_start|>a<|im_end|>"
    assert llm.generate(text, GREEDY)[0].text == llm.generate([97] * 3, GREEDY)[0].text
    assert llm.generate([text], GREEDY, parse_special=False)[0].text == llm.generate("a" * len(text), GREEDY)[0].text
    assert "".join(llm.stream(text, GREEDY)) == llm.generate([97] * 3, GREEDY)[0].text
    plain = "".join(llm.stream(text, GREEDY, parse_special=False))
    assert plain == llm.generate("a" * len(text), GREEDY)[0].text


def test_a_stream_adds_up_and_can_be_left(llm: LLM) -> None:
    assert "".join(llm.stream("abc", GREEDY)) == "defghijk"
    for piece in llm.stream("abc", SamplingParams(temperature=0, max_tokens=400)):
        assert piece.startswith("d")
        break
    assert llm.generate("abc", GREEDY)[0].text == "defghijk"


def test_the_models_defaults_hold_without_params(llm: LLM) -> None:
    assert len(llm.generate("abc")[0].token_ids) == 16


def test_a_prompt_that_cannot_be_served_is_an_exception(llm: LLM) -> None:
    with pytest.raises(RequestError, match="512"):
        llm.generate(["fine", "a" * 600], GREEDY)
    with pytest.raises(RequestError):
        llm.generate("", GREEDY)
    assert llm.generate("abc", GREEDY)[0].text == "defghijk"


def test_threads_may_share_it(llm: LLM) -> None:
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(llm.generate("abc", GREEDY)[0].text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["defghijk"] * 8


def test_a_model_that_does_not_load_says_why(files: ModelFiles) -> None:
    def broken(config: EngineConfig, progress: Callable[[LoadProgress], None]) -> FakeRunner:
        raise ValueError("weights: tensor lm_head.weight is missing")

    before = set(threading.enumerate())
    with pytest.raises(EngineFailedError, match=r"^weights: tensor lm_head\.weight is missing$"):
        LLM(files, make_runner=broken)
    assert set(threading.enumerate()) <= before


def test_closing_twice_is_harmless(files: ModelFiles) -> None:
    llm = LLM(files, make_runner=make_runner)
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("abc", GREEDY)


def test_a_stream_may_be_left_after_it_is_closed(files: ModelFiles) -> None:
    with LLM(files, make_runner=make_runner) as llm:
        stream = llm.stream("x", GREEDY)
        assert next(stream)
    assert isinstance(stream, Generator)
    stream.close()


def test_importing_it_needs_no_torch() -> None:
    program = "import sys; from app import LLM; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
