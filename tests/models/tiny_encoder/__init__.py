"""A small encoder of no model's, to hold the path of encoding up: pre-norm layers, learned positions, a gated MLP.

:func:`served` puts it into the table of architectures; :class:`Reference` is the same in plain torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import embedding, linear, normalize, rms_norm, scaled_dot_product_attention, silu

from app.contract.request import Pooling
from app.models import architectures
from app.models.architecture import Architecture

NAME = "TinyEncoderModel"
ROW = Architecture(title="Tiny encoder", examples="", module="tests.models.tiny_encoder", hf=(NAME,), tasks=("embed",))
CONFIG: dict[str, Any] = {
    "architectures": [NAME],
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 80,
    "rms_norm_eps": 1e-5,
    "window": None,
}


@contextmanager
def served() -> Iterator[None]:
    """Within it the table of architectures has the encoder's row."""
    before = architectures.ARCHITECTURES
    architectures.ARCHITECTURES = (*before, ROW)  # type: ignore[assignment]
    try:
        yield
    finally:
        architectures.ARCHITECTURES = before


class Reference:
    """Random weights, and what they make of one sequence, fp32 throughout."""

    def __init__(self, seed: int = 0, **changes: object) -> None:
        self.config = {**CONFIG, **changes}
        generator = torch.Generator().manual_seed(seed)
        width, inner = self.config["hidden_size"], self.config["intermediate_size"]
        kv = width // self.config["num_attention_heads"] * self.config["num_key_value_heads"]
        shapes = {
            "embed.weight": (self.config["vocab_size"], width),
            "positions.weight": (self.config["max_position_embeddings"], width),
            "norm.weight": (width,),
        }
        for index in range(self.config["num_hidden_layers"]):
            prefix = f"layers.{index}"
            shapes |= {
                f"{prefix}.attn_norm.weight": (width,),
                f"{prefix}.attn.q_proj.weight": (width, width),
                f"{prefix}.attn.k_proj.weight": (kv, width),
                f"{prefix}.attn.v_proj.weight": (kv, width),
                f"{prefix}.attn.q_proj.bias": (width,),
                f"{prefix}.attn.k_proj.bias": (kv,),
                f"{prefix}.attn.v_proj.bias": (kv,),
                f"{prefix}.attn.o_proj.weight": (width, width),
                f"{prefix}.mlp_norm.weight": (width,),
                f"{prefix}.mlp.gate_proj.weight": (inner, width),
                f"{prefix}.mlp.up_proj.weight": (inner, width),
                f"{prefix}.mlp.down_proj.weight": (width, inner),
            }
        self.weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
        for name, weight in self.weights.items():
            if name.endswith("norm.weight"):
                weight += 1

    def save(self, directory: Path) -> Path:
        """Writes it like a published checkpoint; returns ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        save_file(self.weights, directory / "model.safetensors")
        return directory

    def hidden(self, token_ids: Sequence[int]) -> Tensor:
        """[T, D] final hidden states."""
        w, count = self.weights, len(token_ids)
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        at = torch.arange(count)
        far = self.config["window"] or 2 * count
        seen = (at[:, None] - at[None, :]).abs() <= (far - 1) // 2
        x = embedding(torch.tensor(list(token_ids)), w["embed.weight"]) + w["positions.weight"][:count]
        for index in range(self.config["num_hidden_layers"]):
            prefix = f"layers.{index}"
            normed = self._norm(x, f"{prefix}.attn_norm")
            q, k, v = (
                linear(normed, w[f"{prefix}.attn.{part}_proj.weight"], w[f"{prefix}.attn.{part}_proj.bias"])
                .view(count, number, -1)
                .transpose(0, 1)
                for part, number in (("q", heads), ("k", kv_heads), ("v", kv_heads))
            )
            k, v = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (k, v))
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1).reshape(count, -1)
            x = x + linear(mixed, w[f"{prefix}.attn.o_proj.weight"])
            normed = self._norm(x, f"{prefix}.mlp_norm")
            gate = linear(normed, w[f"{prefix}.mlp.gate_proj.weight"])
            up = linear(normed, w[f"{prefix}.mlp.up_proj.weight"])
            x = x + linear(silu(gate) * up, w[f"{prefix}.mlp.down_proj.weight"])
        return self._norm(x, "norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], eps=self.config["rms_norm_eps"])

    def encode(self, token_ids: Sequence[int], pooling: Pooling = Pooling.MEAN, *, normal: bool = True) -> Tensor:
        """[D], or [T, D] without pooling."""
        hidden = self.hidden(token_ids)
        vector = {Pooling.MEAN: hidden.mean(0), Pooling.CLS: hidden[0], Pooling.LAST: hidden[-1]}.get(pooling, hidden)
        return normalize(vector, dim=-1) if normal else vector
