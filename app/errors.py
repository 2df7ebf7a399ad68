"""Errors that a client can act on. ``api/errors.py`` gives them their HTTP shape."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        type: OpenAI error type (``invalid_request_error``, ``overloaded_error``, ``server_error``, …).
        code: machine-readable code (``context_length_exceeded``, ``overloaded``, …) or None.
        param: the request field at fault, or None.
        retry_after: seconds after which trying again makes sense, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",  # noqa: A002 - the wire's own name
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.retry_after = retry_after


class TooManyTokensError(RequestError):
    """A text, or a list of token ids, has more tokens than are of use.

    Attributes:
        most: tokens that are of use.
        count: tokens that there are; None where they were not counted.
    """

    def __init__(self, most: int, *, count: int | None = None, param: str | None = None) -> None:
        has = "more tokens" if count is None else f"{count} tokens, more"
        message = f"{param or 'The text'} has {has} than the {most} that fit."
        super().__init__(message, code="context_length_exceeded", param=param)
        self.most = most
        self.count = count
