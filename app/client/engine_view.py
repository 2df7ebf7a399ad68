"""What ``/v1/engine`` says of a model that no metric can: its state, what the prefix cache keeps, each request."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import msgspec


class Blocks(msgspec.Struct, frozen=True):
    """Blocks of a KV cache."""

    total: int
    cached: int
    """Blocks that no request holds and that the prefix cache could give to one."""


class RequestRow(msgspec.Struct, frozen=True):
    """A request under way."""

    number: int
    status: str
    seconds: float
    """Seconds since it came."""
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    blocks: int
    """KV blocks that it holds."""


class EngineView(msgspec.Struct, frozen=True, tag_field="object", tag="engine"):
    """One engine at one moment."""

    state: str
    kv: Blocks
    requests: list[RequestRow]
    """Those that the caller may see."""

    @property
    def cached_share(self) -> float | None:
        """Share of the KV cache that the prefix cache keeps beside what requests hold; None without an engine."""
        return self.kv.cached / self.kv.total if self.kv.total else None


class EngineViews:
    """Asks a server for its engines, until it turns out that it has no such route or that the key may not ask.

    Args:
        root: the server's URL, without ``/v1``.
    """

    def __init__(self, root: str, http: httpx.Client) -> None:
        self._where = f"{root}/v1/engine"
        self._http = http
        self._answers = True

    def read(self, models: Iterable[str]) -> dict[str, EngineView]:
        """Views of those models that the server tells of."""
        views = ((model, self._view(model)) for model in models)
        return {model: view for model, view in views if view is not None}

    def _view(self, model: str) -> EngineView | None:
        if not self._answers:
            return None
        try:
            answer = self._http.get(self._where, params={"model": model})
            if answer.is_success:
                return msgspec.json.decode(answer.content, type=EngineView)
        except httpx.HTTPError:
            return None  # the metrics tell that it is gone
        except msgspec.DecodeError:
            pass
        self._answers = answer.is_server_error
        return None
