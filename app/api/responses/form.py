"""The form that an answer is bound to: by ``text.format``, or by a field of another server."""

from __future__ import annotations

from app.api import forms
from app.api.forms import Form
from app.api.responses.schemas.body import ResponsesBody
from app.errors import RequestError

_NAME = "text.format"


def read_form(body: ResponsesBody) -> Form | None:
    """What a body binds its answer to; None: nothing. Raises :class:`RequestError` 400."""
    given = body.text.format if body.text else None
    if given is None or given.type == "text":
        return forms.read_form(body)
    if given.type == "json_schema" and given.schema_ is None:
        param = f"{_NAME}.schema"
        raise RequestError(f"{param} is required.", code="missing_required_parameter", param=param)
    other = forms.read_form(body)
    if other is not None:
        message = f"{_NAME} and {other.param} both bind the answer to a form: only one can."
        raise RequestError(message, code="invalid_value", param=other.param)
    return forms.only_form(forms.response_format(given.model_dump(by_alias=True, exclude_none=True), _NAME))
