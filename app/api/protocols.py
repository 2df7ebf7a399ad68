"""The protocols that the server speaks: a row each."""

from __future__ import annotations

from app.api.anthropic.protocol import ANTHROPIC
from app.api.endpoint import Protocol
from app.api.ollama.protocol import OLLAMA
from app.api.openai.protocol import OPENAI
from app.api.responses.protocol import RESPONSES
from app.api.tgi.protocol import TGI

PROTOCOLS: tuple[Protocol, ...] = (OPENAI, RESPONSES, TGI, ANTHROPIC, OLLAMA)


def protocol_of(path: str) -> Protocol:
    """The protocol in whose shape errors of a path are: the first one's if the path belongs to none."""
    return next((protocol for protocol in PROTOCOLS if protocol.owns(path)), PROTOCOLS[0])
