"""What a Mixtral's files call things (torch-free); GGUF files are of architecture ``llama``."""

from __future__ import annotations

from typing import Final

from app.models.names import EXPERT_STACKS, DecoderNames, FamilyNames, StoredParts

_PUBLISHED: Final = {
    "block_sparse_moe.gate.weight": StoredParts(("mlp.gate.weight",)),
    "block_sparse_moe.experts.{expert}.w1.weight": StoredParts(("mlp.experts.{expert}.gate_proj.weight",)),
    "block_sparse_moe.experts.{expert}.w2.weight": StoredParts(("mlp.experts.{expert}.down_proj.weight",)),
    "block_sparse_moe.experts.{expert}.w3.weight": StoredParts(("mlp.experts.{expert}.up_proj.weight",)),
}
"""What checkpoints call the parts of a mixture of experts."""

NAMES = FamilyNames(checkpoint=DecoderNames(stacks={**EXPERT_STACKS, **_PUBLISHED}))
