"""Sends one request of a batch until it has its outcome."""

from __future__ import annotations

import asyncio
import contextlib

import httpx
import msgspec

from app.batch.errors import BatchError
from app.batch.requests import BadRow, RequestRow
from app.batch.results import Answer, Failure, ResultRow, new_id
from app.client.target import auth_headers, describe_body, describe_exception

_TRY_AGAIN = frozenset({429, 502, 503})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0


class _Streams(msgspec.Struct):
    stream: bool | None = None


class Sender:
    """Sends requests to one server.

    Args:
        http: how it is reached.
        root: its address, without ``/v1``.
        timeout: seconds that each try may take.
        retries: tries after the first.
        stop: set when no further try is to begin.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        root: str,
        *,
        api_key: str | None,
        timeout: float,
        retries: int,
        stop: asyncio.Event,
    ) -> None:
        self._http = http
        self._root = root
        self._headers = auth_headers(api_key) | {"Content-Type": "application/json"}
        self._timeout = timeout
        self._retries = retries
        self._stop = stop

    async def send(self, row: RequestRow | BadRow) -> ResultRow | None:
        """The outcome of a request; None if the run was stopped before there was one.

        Raises:
            BatchError: the server cannot be reached, or does not take the key: no request has another outcome.
        """
        row_id = new_id()
        problem = _problem(row)
        if isinstance(row, BadRow) or problem:
            error = Failure(code="invalid_request", message=problem)
            return ResultRow(id=row_id, custom_id=row.custom_id, error=error)
        for attempt in range(self._retries + 1):
            outcome, retry_after = await self._try(row_id, row, last=attempt == self._retries)
            if outcome is not None:
                return outcome
            if await self._stopped_within(pause(attempt, retry_after)):
                return None
        raise AssertionError("the last try has an outcome")

    async def _try(self, row_id: str, row: RequestRow, *, last: bool) -> tuple[ResultRow | None, str]:
        """One try: the outcome, or None and the server's ``Retry-After`` where another one makes sense."""
        headers = self._headers | {"X-Request-Id": row_id}
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._http.post(self._root + row.url, content=bytes(row.body), headers=headers)
        except (TimeoutError, httpx.TimeoutException):
            # What was not done in this time is not done in it a second time either, and costs it again.
            failure = Failure(code="timeout", message=f"No answer within {self._timeout:g} s.")
            return ResultRow(id=row_id, custom_id=row.custom_id, error=failure), ""
        except (httpx.ConnectError, httpx.InvalidURL, httpx.UnsupportedProtocol) as e:
            if last or not isinstance(e, httpx.ConnectError):
                raise BatchError(f"cannot reach {self._root}: {describe_exception(e)}") from None
            return None, ""
        except httpx.HTTPError as e:
            if not last:
                return None, ""
            failure = Failure(code="connection_error", message=describe_exception(e))
            return ResultRow(id=row_id, custom_id=row.custom_id, error=failure), ""
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise BatchError(f"{self._root}: HTTP 401: {describe_body(answer.content)}")
        if answer.status_code in _TRY_AGAIN and not last:
            return None, answer.headers.get("Retry-After", "")
        response = Answer(
            status_code=answer.status_code,
            request_id=answer.headers.get("X-Request-Id", row_id),
            body=_one_line(answer.content),
        )
        return ResultRow(id=row_id, custom_id=row.custom_id, response=response), ""

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return self._stop.is_set()


def _problem(row: RequestRow | BadRow) -> str:
    """Why a row cannot be sent; empty if it can."""
    if isinstance(row, BadRow):
        return row.problem
    if row.method != "POST":
        return f"method is POST, not {row.method[:20]!r}"
    if not row.url.startswith("/") or row.url.startswith("//"):
        return "url is the path of a route, such as /v1/chat/completions"
    try:
        body = msgspec.json.decode(row.body, type=_Streams)
    except msgspec.DecodeError as e:
        return f"body: {e}"
    return "body.stream is not for batches" if body.stream else ""


def pause(attempt: int, retry_after: str) -> float:
    """Seconds before the next try: what the server asks for, within bounds."""
    asked = float(retry_after) if retry_after.isdecimal() else 0.0
    return min(max(asked, _FIRST_PAUSE * 2.0**attempt), _LONGEST_PAUSE)


def _one_line(content: bytes) -> msgspec.Raw:
    """A body as JSON without line breaks; what is no JSON as a string."""
    try:
        return msgspec.Raw(msgspec.json.format(content, indent=-1))
    except msgspec.DecodeError:
        return msgspec.Raw(msgspec.json.encode(content.decode(errors="replace")))
