"""Settings become those of the HTTP side by their names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from app.api.service import ApiSettings
from app.keys import parse_keys
from app.serve.compose import api_settings
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
}


def test_every_field_is_a_setting_or_made_of_some() -> None:
    given = {**OTHERS, "max_body_bytes": "3MiB", "request_timeout": 11.0, "api_keys": KEY}
    api = api_settings(Settings.model_validate(given))
    assert {name: getattr(api, name) for name in OTHERS} == OTHERS
    made = {"max_body_bytes_together": 4 * (3 << 20), "default_timeout": 11.0, "api_keys": parse_keys([KEY])}
    assert {name: getattr(api, name) for name in made} == made
    assert {field.name for field in fields(ApiSettings)} == OTHERS.keys() | made.keys()
