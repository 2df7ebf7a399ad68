"""What a Mistral's checkpoints call things; GGUF files of one are those of a Llama (torch-free)."""

from __future__ import annotations

from app.models.names import FamilyNames

NAMES = FamilyNames()
