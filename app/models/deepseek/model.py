"""Layers as most decoders have them, around attention over latents; what is the family's own stands in its config."""

from __future__ import annotations

from app.models.deepseek.names import NAMES
from app.models.pre_norm import pre_norm

build = pre_norm(NAMES.checkpoint)
