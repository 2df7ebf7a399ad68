"""An engine whose "model" spells bytes, and which follows grammars by llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from app.contract.frames import Vocabulary
from app.contract.request import GenerateRequest
from tests import byte_tokenizer
from tests.engine.harness import Harness, wait_until
from tests.fakes import FakeRunner, fake_request, hash_token

EOS = byte_tokenizer.EOS_ID
IM_END = byte_tokenizer.IM_END_ID
VOCAB_SIZE = 270
"""Logits are wider than the tokenizer's 260 ids, and no multiple of 32."""
CONTROL = {
    byte_tokenizer.BOS_ID: byte_tokenizer.BOS_TOKEN,
    EOS: byte_tokenizer.EOS_TOKEN,
    byte_tokenizer.IM_START_ID: byte_tokenizer.IM_START,
    IM_END: byte_tokenizer.IM_END,
}


def byte_vocabulary() -> Vocabulary:
    """Of the byte tokenizer: ids 0 to 255 are bytes."""
    return Vocabulary(
        token_bytes=[bytes([value]) for value in range(256)] + [name.encode() for name in CONTROL.values()],
        control_tokens=CONTROL,
        definition=byte_tokenizer.build_byte_tokenizer().to_str(),
    )


def next_byte(context: Sequence[int]) -> int:
    """The default "model", in the rig's vocabulary."""
    return hash_token(context, VOCAB_SIZE)


def byte_runner(**options: Any) -> FakeRunner:
    """A fake runner with the rig's vocabulary."""
    return FakeRunner(**{"vocab_size": VOCAB_SIZE, "next_token": next_byte, **options})


def lark(text: str) -> str:
    """A Lark text as a request carries it."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def constrained(
    request_id: str, grammar: str, max_tokens: int = 40, prompt: str = "prompt", **rest: Any
) -> GenerateRequest:
    """A greedy request for the rest of a prompt of bytes."""
    request = fake_request(request_id, prompt.encode(), max_tokens, **rest)
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    return GenerateRequest(**{**fields, "constraint": lark(grammar)})


class ConstrainedEngine(Harness):
    """Waits for grammars wherever a step would have nothing to do."""

    def __init__(self, runner: FakeRunner | None = None, *, vocabulary: bool = True, **config: Any) -> None:
        config = {"eos_token_ids": (EOS, IM_END), **config}
        super().__init__(runner or byte_runner(), **config)
        if vocabulary:
            self.core.set_vocabulary(byte_vocabulary())

    def compile(self) -> None:
        """Waits until no request waits for its grammar."""
        wait_until(self._is_compiled)

    def _is_compiled(self) -> bool:
        self.core.tend()
        return self.core.longest_pause is None

    def run(self, max_steps: int = 5000) -> None:
        self.compile()
        super().run(max_steps)

    def text(self, request_id: str) -> str:
        """Text of a request, without the control token that ended it."""
        token_ids = self.tokens[request_id]
        return bytes(token_id for token_id in token_ids if token_id < 256).decode()
