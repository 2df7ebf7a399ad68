"""The protocols that the server speaks: a row each."""

from __future__ import annotations

from app.api.endpoint import Protocol
from app.api.openai.protocol import OPENAI
from app.api.tgi.protocol import TGI

PROTOCOLS: tuple[Protocol, ...] = (OPENAI, TGI)


def protocol_of(path: str) -> Protocol:
    """The protocol in whose shape errors of a path are: the first one's if the path belongs to none."""
    return next((protocol for protocol in PROTOCOLS if path in protocol.paths), PROTOCOLS[0])
