"""uvicorn's HTTP protocol with bounds on what a connection holds, and on how long it takes over it.

The base class queues pipelined requests, collects headers and waits for slow peers without end; nobody has shown a key
at that point.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.connections import MAX_CONNECTIONS, PROBE_CONNECTIONS, bare_answer, probes_alone
from app.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from uvicorn._types import ASGISendEvent
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together."""
MAX_PIPELINED = 16
"""Requests of a connection that wait for the answer to an earlier one. The connection ends after the last of them."""
MAX_PIPELINED_BYTES = 64 << 10
"""Bytes that are read of requests that wait. The rest stays in the client's socket until they have begun; until then
the client's leaving shows only when it is written to."""
ARRIVAL_TIMEOUT = 30.0
"""Seconds in which a request must have come, and one more for each :data:`ARRIVAL_RATE` bytes of it."""
ARRIVAL_RATE = 1024
"""Bytes a second that a client must send at least."""
SEND_TIMEOUT = 60.0
"""Seconds without a byte taken after which a client that does not read its answer is cut off."""

LINGER = 2.0
"""Seconds for which what a client still sends is dropped once its request was refused: closing on unread bytes resets
the connection, and takes the answer along."""


class _HeadTooLargeError(Exception):
    """Ends the parsing; the parser's caller answers."""


class _TooManyPipelinedError(Exception):
    """Ends the parsing; the requests before are answered."""


class _Flow(FlowControl):
    """Flow control that reads nothing while it is held, whoever asks."""

    held = False

    def hold(self) -> None:
        """Stops reading until :meth:`release`."""
        self.held = True
        self.pause_reading()

    def release(self) -> None:
        """Reads again."""
        self.held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Reads again, unless held."""
        if not self.held:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """Bounds heads, pipelined requests and waiting.

    A head above :data:`MAX_HEAD_BYTES` is answered 431, a request that does not come to its end 408.
    """

    flow: _Flow
    _running: RequestResponseCycle | None = None
    """The request being answered; ``cycle`` is the last one whose head came."""
    _in_message = False
    """Whether a request has begun to come that has not come whole."""
    _message_started = 0.0
    _message_bytes = 0
    _heads = 0
    """Heads that began on this connection."""
    _in_head = False
    _head_bytes = 0
    _unparsed_bytes = 0
    """Bytes of a head that has not ended. The parser does not show an unfinished header."""
    _pipelined_bytes = 0
    _ends = False
    """Whether the connection ends with the answers that are due; what else comes is not looked at."""
    _for_probes = False
    _arrival_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None

    # -- the connection -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected; its first byte must come as soon as the next one of an idle connection."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: all its requests are told, not just the last one."""
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        for timer in (self._arrival_timer, self._send_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Bytes of one or several requests, or of a part of one."""
        if self._ends:
            return  # read and dropped
        heads = self._heads
        super().data_received(data)
        if self._ends or self.transport.is_closing():
            return
        if self.pipeline:
            self._pipelined_bytes += len(data)
            if self._pipelined_bytes > MAX_PIPELINED_BYTES:
                self.flow.hold()
        if self._in_message:
            self._message_bytes += len(data)
            if self._arrival_timer is None:
                self._arrival_timer = self.loop.call_later(ARRIVAL_TIMEOUT, self._check_arrival)
        if self._in_head and heads == self._heads:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())

    # -- the parser's calls -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request's first byte."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _TooManyPipelinedError
        super().on_message_begin()
        self._heads += 1
        self._in_head = self._in_message = True
        self._head_bytes = self._unparsed_bytes = self._message_bytes = 0
        self._message_started = self.loop.time()

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
        if self.cycle.scope["http_version"] == "1.0":
            self.cycle.send = _unframed(self.cycle)  # type: ignore[assignment, method-assign]
        if self._for_probes:
            self.cycle.keep_alive = False
        if self.pipeline:
            self.flow.resume_reading()  # within bounds, or nobody would notice that the client leaves
        else:
            self._running = self.cycle

    def on_message_complete(self) -> None:
        """The request has come whole."""
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what could not be parsed."""
        too_large = self._head_bytes > MAX_HEAD_BYTES
        self._refuse(_head_too_large() if too_large else RequestError(msg, code="invalid_http"))

    # -- answers ------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """An answer was written; the next request begins."""
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if not self.pipeline:
            self._pipelined_bytes = 0
            self.flow.release()
        if self.transport.is_closing():
            self._watch_sending()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        self._watch_sending()

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for too long, or its client has still not read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    # -- bounds -------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no request has begun to come, and none is being answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self._in_message and not self.transport.is_closing()

    def _make_room(self) -> None:
        """Closes a connection that nobody uses, or restricts this one."""
        others = (each for each in self.connections if isinstance(each, HttpProtocol) and each is not self)
        idle = next((each for each in others if each.is_idle), None)
        if idle is not None:
            idle.transport.close()
        elif len(self.connections) > MAX_CONNECTIONS + PROBE_CONNECTIONS:
            self.transport.abort()
        else:
            self._for_probes = True
            self.app = probes_alone(self.app)

    def _grow(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLargeError

    def _end_after_answers(self) -> bool:
        """Takes no more requests if answers are due: nothing else may be written before them.

        Returns:
            Whether that settles it; if not, no answer is due, and the client may be told what is wrong.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if cycle.more_body and cycle is self._running and not cycle.response_started:
            return False  # the fault is in the body of the one request that is due
        self._ends = True
        if cycle.more_body:
            self.transport.close()
        else:
            cycle.keep_alive = False
            self.flow.release()  # what comes is dropped, but the client's leaving is noticed
        return True

    def _refuse(self, error: RequestError) -> None:
        """Answers a request that has not come whole, and closes the connection."""
        if self._end_after_answers():
            return
        if self._in_message and not self._in_head and self.cycle is not None and self.cycle.response_complete:
            self.transport.close()  # it was answered before it had come
            return
        self._ends = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(bare_answer(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER, self.transport.close)

    def _check_arrival(self) -> None:
        """One timer for the requests of a connection that did not come in one piece."""
        self._arrival_timer = None
        if not self._in_message or self._ends or self.transport.is_closing():
            return
        now = self.loop.time()
        if self.flow.read_paused:  # the server does not read: that is not the client's fault
            self._message_started = now
        remaining = self._message_started + ARRIVAL_TIMEOUT + self._message_bytes / ARRIVAL_RATE - now
        if remaining > 0:
            self._arrival_timer = self.loop.call_later(remaining, self._check_arrival)
        else:
            message = f"The request did not come whole within {ARRIVAL_TIMEOUT:g} s and a second for each KiB."
            self._refuse(RequestError(message, status=408, code="request_timeout"))

    def _watch_sending(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._send_timer is None:
            self._send_timer = self.loop.call_later(SEND_TIMEOUT, self._check_sending, unsent)

    def _check_sending(self, unsent_before: int) -> None:
        self._send_timer = None
        unsent = self.transport.get_write_buffer_size()
        if not unsent or not (self.flow.write_paused or self.transport.is_closing()):
            return
        if unsent >= unsent_before:
            self.transport.abort()
        else:
            self._watch_sending()


def _unframed(cycle: RequestResponseCycle) -> Callable[[ASGISendEvent], Coroutine[Any, Any, None]]:
    """The cycle's ``send`` for a client of HTTP/1.0, which knows no chunks: an answer of unknown length ends with the
    connection, which such a client does not keep."""
    send, counted = cycle.send, True

    async def send_unframed(message: ASGISendEvent) -> None:
        nonlocal counted
        if message["type"] == "http.response.start":
            counted = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if not counted:
                cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and not counted:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_unframed


def _head_too_large() -> RequestError:
    message = f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes."
    return RequestError(message, status=431, code="headers_too_large")
