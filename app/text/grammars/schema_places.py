"""Places in a JSON Schema, and the errors that name them."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import RequestError

_MAX_PARAM = 512


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a client's field."""

    param: str
    """The field's name, and behind it a JSON pointer."""

    def at(self, *keys: str | int) -> Place:
        """A place further inside."""
        escaped = (str(key).replace("~", "~0").replace("/", "~1") for key in keys)
        return Place("/".join((self.param, *escaped)))

    def refusal(self, why: str) -> RequestError:
        """An error about what stands here.

        Args:
            why: continues a sentence that begins with the place.
        """
        param = self.param if len(self.param) <= _MAX_PARAM else self.param[:_MAX_PARAM] + "..."
        return RequestError(f"{param} {why}.", code="invalid_value", param=param)

    def unsupported(self, keyword: str, why: str = "is not supported") -> RequestError:
        """An error about a keyword here that no answer can be made to obey."""
        place = self.at(keyword)
        error = place.refusal(f"cannot be enforced: {keyword} {why}")
        error.code = "unsupported_parameter"
        return error
