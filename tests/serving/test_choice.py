"""Text, tokens and stop strings of one choice, however its tokens are cut into outputs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.frames import EngineOutput, TokenLogprobs
from app.contract.request import FinishReason, SamplingParams
from app.serving.choice import Choice, control_stops
from app.serving.generation import Completion
from app.serving.types import ChoiceDelta
from app.text.parsers.format import Opened, ThoughtFormat
from app.text.parsers.formats import FORMATS, ReplyFormat
from app.text.parsers.reply import Content, Reasoning, ReplyParser
from app.text.parsers.thoughts import THOUGHTS
from tests.byte_tokenizer import EOS_ID, IM_END_ID, IM_START_ID
from tests.serving.rig import byte_tokenizer

TOKENIZER = byte_tokenizer()
STOPS = st.lists(st.text(alphabet="abé好", min_size=1, max_size=3), max_size=3)
TEXT = st.text(alphabet="abé好😀", max_size=24)
CUTS = st.lists(st.integers(1, 5), min_size=40, max_size=40)


def pieces(token_ids: list[int], cuts: list[int]) -> list[list[int]]:
    """Cuts tokens into outputs of the given sizes, the rest into one."""
    parts, start = [], 0
    for cut in cuts:
        parts.append(token_ids[start : start + cut])
        start += cut
    return [*parts, token_ids[start:]]


def run(
    params: SamplingParams,
    token_ids: list[int],
    cuts: list[int],
    *,
    finish_reason: FinishReason = FinishReason.LENGTH,
    stop_token_id: int | None = None,
    parser: ReplyParser | None = None,
) -> tuple[Choice, list[ChoiceDelta]]:
    """Feeds a choice, taking a delta after each output."""
    choice = Choice(0, params, TOKENIZER, parser)
    parts = [part for part in pieces(token_ids, cuts) if part] or [[]]
    deltas = []
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        choice.push(
            EngineOutput(
                request_id="r",
                new_token_ids=part,
                logprobs=[TokenLogprobs(token_id, -1.0, 1, []) for token_id in part],
                finish_reason=finish_reason if last else None,
                stop_token_id=stop_token_id if last else None,
            )
        )
        if (delta := choice.take()) is not None:
            deltas.append(delta)
    return choice, deltas


@given(
    text=TEXT,
    stops=st.lists(st.text(alphabet="abé好", min_size=1, max_size=3), max_size=3),
    cuts=CUTS,
    keep=st.booleans(),
)
def test_a_stop_string_ends_the_text_and_never_leaks(text: str, stops: list[str], cuts: list[int], keep: bool) -> None:
    choice, deltas = run(SamplingParams(stop=tuple(stops), include_stop=keep, max_tokens=99), list(text.encode()), cuts)
    said = "".join(delta.text for delta in deltas)
    ends = [(text.index(stop) + len(stop), len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert said == text
        assert choice.finish_reason is FinishReason.LENGTH
        return
    end = min(ends)[0]
    stop = max((length, stop) for at, length, stop in ends if at == end)[1]
    assert said == (text[:end] if keep else text[: end - len(stop)])
    assert deltas[-1].stop_reason == stop
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [FinishReason.STOP]
    # Delivered are the tokens up to the one that completed the match, and not one more.
    delivered = [token_id for delta in deltas for token_id in delta.token_ids]
    assert delivered == list(text[:end].encode())


@given(data=st.binary(max_size=40), cuts=CUTS)
def test_deltas_add_up_to_the_decoded_text(data: bytes, cuts: list[int]) -> None:
    _, deltas = run(SamplingParams(max_tokens=99), list(data), cuts)
    assert "".join(delta.text for delta in deltas) == data.decode("utf-8", errors="replace")
    assert [token_id for delta in deltas for token_id in delta.token_ids] == list(data)
    assert all([token.token_id for token in delta.tokens] == delta.token_ids for delta in deltas)


@given(text=TEXT, cuts=CUTS)
def test_a_delta_lists_the_tokens_whose_text_it_begins(text: str, cuts: list[int]) -> None:
    """Tokens come with the first of their text, so all tokens so far spell all text so far."""
    _, deltas = run(SamplingParams(stop=("bb好bb",), max_tokens=99), list(text.encode()), cuts)
    token_ids: list[int] = []
    said = ""
    for delta in deltas:
        token_ids += delta.token_ids
        said += delta.text
        assert bytes(token_ids) == said.encode()


def test_tokens_of_an_unfinished_character_wait_for_it() -> None:
    _, deltas = run(SamplingParams(max_tokens=9), list("a好b".encode()), [1, 1, 1, 1])
    assert [(delta.text, len(delta.token_ids)) for delta in deltas] == [("a", 1), ("好", 3), ("b", 1)]


def test_a_partial_character_at_the_end_becomes_a_replacement() -> None:
    _, deltas = run(SamplingParams(max_tokens=9), list("a好".encode())[:-1], [9])
    assert [delta.text for delta in deltas] == ["a\ufffd"]


def test_the_end_token_is_listed_but_not_spelt() -> None:
    choice, deltas = run(
        SamplingParams(max_tokens=9), [*b"hi", EOS_ID], [1, 1, 1], finish_reason=FinishReason.STOP, stop_token_id=EOS_ID
    )
    assert [delta.text for delta in deltas] == ["h", "i", ""]
    assert deltas[-1].token_ids == [EOS_ID]
    assert [token.bytes for token in deltas[-1].tokens] == [b"</s>"]
    assert choice.finish_reason is FinishReason.STOP
    assert deltas[-1].stop_reason is None


@pytest.mark.parametrize(("include_stop", "text"), [(False, "hi"), (True, "hi!")])
def test_a_stop_token_of_the_request_is_named(include_stop: bool, text: str) -> None:
    params = SamplingParams(max_tokens=9, stop_token_ids=(33,), include_stop=include_stop)
    _, deltas = run(params, [*b"hi!"], [9], finish_reason=FinishReason.STOP, stop_token_id=33)
    assert [delta.text for delta in deltas] == [text]
    assert deltas[-1].stop_reason == 33


@pytest.mark.parametrize("keep", [True, False])
def test_a_stop_string_that_is_a_control_token_is_named(keep: bool) -> None:
    params = SamplingParams(max_tokens=9, stop=("zz", "</s>", "ij"), include_stop=keep)
    tokens, cuts = [*b"hi", EOS_ID], [1, 1, 1]
    choice, deltas = run(params, tokens, cuts, finish_reason=FinishReason.STOP, stop_token_id=EOS_ID)
    assert "".join(delta.text for delta in deltas) == "hi"
    assert [token_id for delta in deltas for token_id in delta.token_ids] == tokens
    assert (choice.finish_reason, deltas[-1].stop_reason) == (FinishReason.STOP, "</s>")
    shown = run(msgspec.structs.replace(params, skip_special_tokens=False), [*tokens, 97], cuts)[1]
    assert "".join(delta.text for delta in shown) == ("hi</s>" if keep else "hi")
    assert shown[-1].stop_reason == "</s>"
    assert control_stops(params, TOKENIZER) == {EOS_ID: "</s>"}


def test_control_tokens_in_mid_text_are_shown_only_on_request() -> None:
    tokens = [*b"a", EOS_ID, *b"b"]
    hidden = run(SamplingParams(max_tokens=9), tokens, [1, 1, 1])[1]
    shown = run(SamplingParams(max_tokens=9, skip_special_tokens=False), tokens, [1, 1, 1])[1]
    assert [(delta.text, delta.token_ids) for delta in hidden] == [("a", [97]), ("", [EOS_ID]), ("b", [98])]
    assert "".join(delta.text for delta in shown) == "a</s>b"


def test_stop_strings_count_only_behind_min_tokens() -> None:
    params = SamplingParams(stop=("aa",), min_tokens=3, max_tokens=99)
    _, deltas = run(params, list(b"aaaaaaaa"), [1] * 8)
    assert "".join(delta.text for delta in deltas) == "aaa"
    assert sum(len(delta.token_ids) for delta in deltas) == 5


def test_no_tokens_are_delivered_when_none_were_wanted() -> None:
    choice, deltas = run(SamplingParams(max_tokens=0), [97], [1])
    assert choice.finish_reason is FinishReason.LENGTH
    assert [(delta.text, delta.token_ids, delta.tokens) for delta in deltas] == [("", [], [])]


def test_nothing_counts_after_the_end() -> None:
    choice, _ = run(SamplingParams(max_tokens=9), [97], [1])
    choice.push(EngineOutput(request_id="r", new_token_ids=[98]))
    assert choice.take() is None


def think_parser() -> ReplyParser:
    think = next(each for each in THOUGHTS if each.name == "think")
    return ReplyFormat(FORMATS[-1], think).parser({"f": {}}, Opened.NOT, TOKENIZER)


@given(
    text=st.sampled_from(
        [
            "<think>hm</think>\nSee.\n<tool_call>\n" + '{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
            "<think>hm, é",
            "No thought. \n",
        ]
    ),
    cuts=CUTS,
    stop=st.sampled_from([(), ("See",), ("m",)]),
)
def test_parts_do_not_depend_on_the_cuts(text: str, cuts: list[int], stop: tuple[str, ...]) -> None:
    params = SamplingParams(stop=stop, max_tokens=999)
    token_ids = [*text.encode(), EOS_ID]
    _, whole = run(params, token_ids, [999], stop_token_id=EOS_ID, parser=think_parser())
    _, cut = run(params, token_ids, cuts, stop_token_id=EOS_ID, parser=think_parser())
    completions = []
    for deltas in (whole, cut):
        completion = Completion(0)
        for delta in deltas:
            assert delta.text == "".join(part.text for part in delta.parts if isinstance(part, Content))
            assert len(delta.tokens) == len(delta.token_ids)
            completion.add(delta)
        for call in completion.calls:
            call.id = ""
        completions.append((completion, sum(delta.reasoning_tokens for delta in deltas)))
    assert completions[0] == completions[1]


def test_control_tokens_that_a_parser_reads_are_shown_to_it_alone() -> None:
    think = ThoughtFormat(name="x", opening="<|im_start|>", closing="<|im_end|>", tells=(), control=_MARKS)
    parser = ReplyFormat(FORMATS[-1], think).parser({}, Opened.NOT, TOKENIZER)
    token_ids = [IM_START_ID, *b"a", IM_END_ID, *b"b", IM_END_ID, *b"c"]
    _, (delta,) = run(SamplingParams(max_tokens=99), token_ids, [99], parser=parser)
    assert delta.parts == (Reasoning("a"), Content("b"), Content("c"))
    assert delta.text == "bc"
    assert delta.reasoning_tokens == 3
    assert len(delta.tokens) == len(delta.token_ids) == len(token_ids)


_MARKS = ("<|im_start|>", "<|im_end|>")
