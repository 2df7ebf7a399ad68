"""Gemma 2: norms on both sides of every sublayer, which multiply by 1 + w; the rest stands in its config."""

from __future__ import annotations

from app.models.gemma2.names import NAMES
from app.models.sandwich import sandwich

build = sandwich(NAMES.checkpoint, plus_one=True)
