"""Layers with norms behind their sublayers; what is the family's own stands in its config."""

from __future__ import annotations

from app.models.olmo2.names import NAMES
from app.models.post_norm import post_norm

build = post_norm(NAMES.checkpoint)
