"""The process in which grammars are tried: native code may panic over one, abort, or take too long.

A line in, a line out: a grammar's source, and why it is refused (empty: it is not). Arguments are the bytes of memory
that the process may take, and the seconds of processor time that one grammar may.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from app.contract.constraints import PARSER_LIMITS
from app.parent import end_with_parent

_STEPS: Final = 24
"""Bytes of an answer that are tried, at random: some grammars only turn out too large when they are used."""
_EOS: Final = 256
_NAMED_TOKEN: Final = re.compile(r"<([^<>\s\[\]\"'\\]{1,100})>")
_MAX_NAMED: Final = 512
_MOST_IDS: Final = 1 << 20
_ID_RANGES: Final = re.compile(r"<\[[\^*\d,\s-]*\]>")
_MAX_REASON: Final = 300
_DEAD_ENDS: Final = ("NoExtension", "NoExtensionBias")


class _Bytes:
    """A vocabulary of all bytes, and of the control tokens that a grammar names."""

    eos_token_id = _EOS
    bos_token_id = None

    def __init__(self, source: str) -> None:
        names = dict.fromkeys(_NAMED_TOKEN.findall(source))
        self.tokens = [bytes([byte]) for byte in range(_EOS)] + [b"<eos>"]
        self.tokens += [f"<{name}>".encode() for name in list(names)[:_MAX_NAMED]]
        self.special_token_ids = list(range(_EOS, len(self.tokens)))
        ids = [int(each) for ranges in _ID_RANGES.findall(source) for each in re.findall(r"\d{1,7}", ranges)]
        self.tokens += [b""] * (min(max(ids, default=0) + 1, _MOST_IDS) - len(self.tokens))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def refusal(source: str) -> str:
    """Why a grammar cannot be used, in one line; empty when it can."""
    texts = "\n".join(grammar["lark_grammar"] for grammar in json.loads(source)["grammars"])
    vocabulary = _Bytes(texts)
    tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=_EOS, slices=[])
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=LLParserLimits(**PARSER_LIMITS))
    chance = random.Random(0)  # noqa: S311 - which text is tried is no secret
    for _ in range(_STEPS):
        if matcher.is_error():
            return _reason(matcher.get_error())
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return _reason(matcher.get_error())
        allowed = [token for token in range(_EOS) if mask[token >> 3] >> (token & 7) & 1]
        if not allowed:
            may_end = matcher.is_accepting() or any(mask[(_EOS >> 3) + 1 :]) or mask[_EOS >> 3] > 1
            return "" if may_end else "it allows no text"
        matcher.consume_token(chance.choice(allowed))
    return _reason(matcher.get_error()) if matcher.is_error() else ""


def _reason(message: str) -> str:
    """The first line of an error, without the place that the library puts before it."""
    line = next(iter(message.split("<state>")[0].splitlines()), "").strip()
    line = re.sub(r"^(?:at )?\d+\(\d+\): ", "", line)
    if line in _DEAD_ENDS:
        return "it allows no text"
    return " ".join(line.split())[:_MAX_REASON] or "it cannot be compiled"


def main() -> None:
    """Answers until the other end is gone."""
    memory, seconds = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    end_with_parent()
    for source in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))
        sys.stdout.buffer.write(refusal(source.decode()).encode(errors="replace") + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
