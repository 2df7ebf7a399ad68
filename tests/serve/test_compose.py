"""Settings become those of the HTTP side by their names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from app.api.service import ApiSettings
from app.keys import parse_keys
from app.serve.compose import api_settings
from app.serve.supervised import served_names
from app.settings import Settings

KEY = "a-secret-of-20-chars"
# None of them a default.
OTHERS: dict[str, Any] = {
    "strict_params": True,
    "max_body_bytes": 3 << 20,
    "max_n": 3,
    "max_prompts": 5,
    "max_logprobs": 7,
    "max_stop": 9,
    "keepalive_interval": 2.5,
    "cors_origins": ("https://a.example",),
    "page": False,
}


@pytest.mark.parametrize(
    ("given", "names"), [("", ("own",)), ("*", ("own",)), ("a,*,b", ("a", "b")), ("a", ("a",)), ("*a", ("*a",))]
)
def test_served_names(given: str, names: tuple[str, ...]) -> None:
    assert served_names(Settings.model_validate({"served_model_name": given}), "own") == names


@pytest.mark.parametrize(
    ("given", "on_loopback", "hosts"),
    [
        ("", True, ("localhost",)),
        ("a.example", True, ("a.example", "localhost")),
        ("a.example", False, ("a.example",)),
        ("", False, None),
        ("a.example,*", True, None),
    ],
)
def test_allowed_hosts(given: str, on_loopback: bool, hosts: tuple[str, ...] | None) -> None:
    settings = Settings.model_validate({"allowed_hosts": given, "host": "localhost"})
    assert api_settings(settings, on_loopback=on_loopback).allowed_hosts == hosts


def test_every_field_is_a_setting_or_made_of_some() -> None:
    given = {**OTHERS, "max_body_bytes": "3MiB", "request_timeout": 11.0, "allowed_hosts": "a.example"}
    api = api_settings(Settings.model_validate(given), parse_keys([KEY]))
    assert {name: getattr(api, name) for name in OTHERS} == OTHERS
    assert api.allowed_hosts == ("a.example", "127.0.0.1")
    made = {"max_body_bytes_together": 4 * (3 << 20), "default_timeout": 11.0, "api_keys": parse_keys([KEY])}
    assert {name: getattr(api, name) for name in made} == made
    assert {field.name for field in fields(ApiSettings)} == OTHERS.keys() | made.keys() | {"allowed_hosts"}
