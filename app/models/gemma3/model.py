"""Gemma 3: norms on both sides of every sublayer, which multiply by 1 + w; layers with a window between full ones."""

from __future__ import annotations

from app.models.gemma3.names import NAMES
from app.models.sandwich import sandwich

build = sandwich(NAMES.checkpoint, plus_one=True)
