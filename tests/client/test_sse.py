from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client.sse import DONE, EventDecoder, decode_chunk


def feed(pieces: list[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)]


@given(st.lists(st.text()), st.sampled_from([b"\n", b"\r\n"]), st.integers(1, 40))
def test_events_do_not_depend_on_how_the_bytes_arrive(texts: list[str], newline: bytes, size: int) -> None:
    # Not escaped: U+2028, U+0085 and the like stand in the stream as they are, and end no line.
    events = [json.dumps({"t": text}, ensure_ascii=False).encode(errors="surrogatepass") for text in texts]
    stream = b"".join(b"data: " + event + newline * 2 for event in events)
    assert feed([stream[i : i + size] for i in range(0, len(stream), size)]) == events


def test_comments_and_other_fields_are_passed_over() -> None:
    assert feed([b": keep-alive\n\nevent: x\nid: 1\ndata:a\ndata: b\n\ndata: [DONE]\n\ndata: cut"]) == [b"a\nb", DONE]


@pytest.mark.parametrize(
    ("body", "text", "finished"),
    [
        ({"choices": [{"index": 0, "text": "a", "finish_reason": None}]}, "a", False),
        ({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}, "", True),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, "", False),
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, "", False),
        ({"choices": [{"delta": {"content": "b"}, "logprobs": None}]}, "b", False),
        ({"choices": [{"delta": {"reasoning_content": "hm", "content": None}}]}, "hm", False),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}, "", False),
    ],
)
def test_what_counts_as_text(body: dict[str, object], text: str, finished: bool) -> None:
    chunk = decode_chunk(json.dumps(body).encode())
    assert (chunk.text, chunk.finished) == (text, finished)


def test_cached_tokens_of_servers_that_say_and_of_others() -> None:
    for details, expected in (({"cached_tokens": 5}, 5), ({}, 0), (None, 0)):
        usage = {"prompt_tokens": 8, "completion_tokens": 1, "prompt_tokens_details": details}
        chunk = decode_chunk(json.dumps({"choices": [], "usage": usage}).encode())
        assert chunk.usage is not None
        assert chunk.usage.cached_tokens == expected


def test_what_is_no_chunk() -> None:
    for data in (b"{", b"[]", b'{"choices": 3}'):
        with pytest.raises(msgspec.DecodeError):
            decode_chunk(data)
