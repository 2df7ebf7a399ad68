"""Built as a Llama: what differs stands in the config."""

from __future__ import annotations

from app.models.llama.model import build

__all__ = ["build"]
