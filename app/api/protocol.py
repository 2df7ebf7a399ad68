"""uvicorn's HTTP protocol with a bound on what a request may say before its body."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.errors import error_body
from app.serving.errors import RequestError

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together."""


class _HeadTooLargeError(Exception):
    """Ends the parsing; the parser's caller answers."""


class HttpProtocol(HttpToolsProtocol):
    """Answers 431 to a head above :data:`MAX_HEAD_BYTES`; the base class collects headers without end."""

    _heads = 0
    """Heads that began on this connection."""
    _in_head = False
    _head_bytes = 0
    _unparsed_bytes = 0
    """What came while the head went on without end: the parser keeps an unfinished header to itself."""
    _too_large = False

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._heads += 1
        self._in_head = True
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        self._grow(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes of one or several requests, or of a part of one."""
        heads = self._heads
        super().data_received(data)
        if self._in_head and heads == self._heads and not self.transport.is_closing():
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES:
                self._refuse()

    def send_400_response(self, msg: str) -> None:
        """Answers what could not be parsed."""
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _grow(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES:
            self._too_large = True
            raise _HeadTooLargeError

    def _refuse(self) -> None:
        message = f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes."
        body = error_body(RequestError(message, status=431, code="headers_too_large"))
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
