"""What the encoder's files call things."""

from __future__ import annotations

from app.models.names import FamilyNames

NAMES = FamilyNames()
