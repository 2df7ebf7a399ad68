"""Bodies that clients send, and fields that several protocols have.

A field that a schema declares is honoured. Whatever else a body holds ends up in ``model_extra``, and
``app/api/extras.py`` decides whether that is refused or named back. ``null`` means absent everywhere, as OpenAI's SDKs
send it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.api.body import TAG
from app.errors import RequestError

MAX_STOP_LENGTH = 1024
MAX_TOKENS = 2**31 - 1
MAX_ITEMS = 1 << 16
"""Most texts or lists in a list; the server's settings allow fewer of most."""
MAX_KEYS = 1024
"""Fields of an object that has no schema of its own here."""
MAX_IDS = 1 << 20
"""Most token ids in a list."""
MAX_LOGIT_BIAS = 1024
MAX_TEMPLATE_VARIABLES = 64

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
ParseSpecial = Annotated[
    bool | None,
    Field(
        description="Take control tokens that the text spells for what they say, as a prompt needs that the client "
        "rendered from a chat template. Default true; false keeps pasted text from posing as a turn of its own."
    ),
]
TimeLimit = Annotated[
    Annotated[float, Field(gt=0, le=1e9)] | None,
    Field(description="Seconds after which the request is given up; the server may allow less."),
]


def _bounded_bias(value: Any) -> Any:
    """Looks at the size first: entries are validated one by one, and each bad one makes an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIAS:
        raise PydanticCustomError("too_long", "has more than {most} entries", {"most": MAX_LOGIT_BIAS})
    return value


LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=MAX_LOGIT_BIAS),
    BeforeValidator(_bounded_bias),
]
# Lists stop at their first bad item: a body of a million bad ones must not make a million errors.
StopStrings = Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_ITEMS)]
TokenIdList = Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]
JsonObject = Annotated[dict[str, Any], Field(max_length=MAX_KEYS)]
"""An object of any fields: a JSON Schema, or what says how an answer is bound to one."""
TemplateVariables = Annotated[dict[str, Any], Field(max_length=MAX_TEMPLATE_VARIABLES)]


def text_or_list(value: Any) -> str:
    """Tag of a field that takes a string or a list: errors then speak of the form that was sent."""
    return "list" if isinstance(value, list) else "text"


def type_tag(value: Any) -> str | None:
    """Tag of an object that says by its ``type`` which one of several it is."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAG + kind if isinstance(kind, str) else None


class Body(BaseModel):
    """Typed strictly (``"16"`` is no number, ``true`` is no 1), open to unknown fields, no NaN or infinity."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())


class Part(Body):
    """An object within a body. Its unknown fields are named back behind the name of the field that it is in."""


def read_logit_bias(given: Mapping[str, float] | None) -> dict[int, float]:
    """Biases of logits by token id. Raises :class:`RequestError` 400 for a key that is no token id."""
    bias: dict[int, float] = {}
    for key, value in (given or {}).items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise RequestError("logit_bias: keys are token ids.", code="invalid_value", param="logit_bias")
        bias[int(key)] = value
    return bias
