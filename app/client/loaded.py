"""What a server has loaded, by Ollama's API: any server that speaks it can be asked."""

from __future__ import annotations

from typing import Any

import httpx

from app.client.target import TargetError, api_root, auth_headers, describe_body, describe_exception

_SECONDS = 30.0


def running_models(url: str, api_key: str | None) -> list[dict[str, Any]]:
    """The loaded models, each as ``/api/ps`` has it. Raises :class:`TargetError`."""
    models = _ask(url, api_key, "GET", "/api/ps")[0].get("models")
    return [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []


def shown_model(url: str, api_key: str | None, name: str) -> dict[str, Any]:
    """What ``/api/show`` says of a model. Raises :class:`TargetError`."""
    return _ask(url, api_key, "POST", "/api/show", {"model": name})[0]


def unload(url: str, api_key: str | None, name: str) -> None:
    """Has a server unload a model, by asking it to keep it for no time.

    Raises:
        TargetError: it does not know the model, or keeps it all the same.
    """
    body = {"model": name, "keep_alive": 0, "stream": False}
    answer, headers = _ask(url, api_key, "POST", "/api/generate", body)
    if "keep_alive" in headers.get("x-ignored-params", "") or answer.get("done_reason") != "unload":
        raise TargetError(f"{url} keeps {name} loaded; end the server itself, with Ctrl-C or SIGTERM")


def _ask(
    url: str, api_key: str | None, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[dict[str, Any], httpx.Headers]:
    where = api_root(url).removesuffix("/v1") + path
    try:
        answer = httpx.request(method, where, json=body, headers=auth_headers(api_key), timeout=_SECONDS)
        if not answer.is_success:
            raise TargetError(f"{where}: HTTP {answer.status_code}: {describe_body(answer.content)}")
        content = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise TargetError(f"cannot reach {where}: {describe_exception(e)}; tuili serve starts a server") from None
    except ValueError:
        raise TargetError(f"{where}: not JSON") from None
    if not isinstance(content, dict):
        raise TargetError(f"{where}: not a JSON object")
    return content, answer.headers
