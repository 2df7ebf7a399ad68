"""The stack and the blocks that families put together, in a family of no model's: what the served ones leave out.

Learned positions, heads without a rotation beside rotated parts of heads, norms behind sublayers, norms that multiply
by 1 + w, projections that a checkpoint keeps fused and transposed, names without the decoder's prefix.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from app.checkpoints.loader import load_weights
from app.kernels.types import StepArena
from app.layers.blocks import SelfAttention
from app.models.config import AttentionConfig, DeltaConfig, ExpertsConfig, LayerConfig, MlpConfig, ModelConfig, Rope
from app.models.decoder import DecoderLayer, DecoderStack, ParallelLayer
from app.models.names import DecoderNames
from app.models.parts import Parts
from app.quant.destination import Destination, Interleaved, Transposed
from app.quant.placement import Placement
from tests.models.tiny import CONTEXT, CPU, PagedExecution

D, H, G, E, V = 24, 4, 2, 8, 40
EPS = 1e-5
WIDTHS = (20, 36, 20)
"""Of each layer's MLP."""
ROPES = (Rope(theta=100.0, width=4), None, Rope(theta=1000.0, width=8))
WINDOWS = (None, 6, None)
NAMES = DecoderNames(
    base="base.",
    embedding="base.wte",
    positions="base.wpe",
    layers="base.h",
    final_norm="base.ln_f",
    mixer_norm="pre_attn",
    mixers={"attention": "attn"},
    mixer_post_norm="post_attn",
    mlp_norm="pre_mlp",
    mlp_post_norm="post_mlp",
)


def layer_config(width: int, rope: Rope | None, window: int | None) -> LayerConfig:
    attention = AttentionConfig(
        num_heads=H, num_kv_heads=G, head_dim=E, scale=0.2, rope=rope, window=window, qkv_bias=True, qk_norm=True
    )
    return LayerConfig(attention, MlpConfig(width=width))


CONFIG = ModelConfig(
    architecture="MadeUp",
    vocab_size=V,
    hidden_size=D,
    norm_eps=EPS,
    layers=tuple(map(layer_config, WIDTHS, ROPES, WINDOWS)),
    context_length=CONTEXT,
    tie_word_embeddings=True,
    positions=CONTEXT,
    embedding_scale=1.5,
)


class FusedAttention(SelfAttention):
    """Its checkpoint keeps the three projections as one matrix [D, (H + 2G) * E], the output's likewise."""

    def destinations(self, prefix: str) -> dict[str, Destination]:
        named = super().destinations(prefix)
        parts = [f"{prefix}.{part}_proj" for part in "qkv"]
        weights, biases = ([named.pop(f"{part}.{kind}") for part in parts] for kind in ("weight", "bias"))
        output = named.pop(f"{prefix}.o_proj.weight")
        return named | {
            f"{prefix}.c_attn.weight": Transposed(Interleaved(weights)),
            f"{prefix}.c_attn.bias": Interleaved(biases),
            f"{prefix}.c_proj.weight": Transposed(output),
        }


def build(model: ModelConfig = CONFIG) -> DecoderStack:
    parts = Parts(model, max_positions=CONTEXT, placement=Placement(torch.float32, CPU))

    def layer(config: LayerConfig) -> DecoderLayer:
        assert isinstance(config.mixer, AttentionConfig)
        norms = (parts.rms_norm(E), parts.rms_norm(E))
        rope_PE = parts.rope(config.mixer.rope)
        return DecoderLayer(
            mixer_norm=parts.rms_norm(plus_one=True),
            mixer=FusedAttention(config.mixer, D, rope_PE=rope_PE, norms=norms, placement=parts.placement),
            mixer_post_norm=parts.rms_norm(plus_one=True),
            mlp_norm=parts.rms_norm(plus_one=True),
            mlp=parts.mlp(config.mlp),
            mlp_post_norm=parts.rms_norm(plus_one=True),
        )

    layers = [layer(config) for config in model.layers]
    return DecoderStack(parts, NAMES, layers, final_norm=parts.rms_norm(plus_one=True))


def expected(weights: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """[T, V]: the model of those weights in plain torch."""
    positions = torch.arange(len(tokens))
    x = weights["wte.weight"][tokens] * 1.5 + weights["wpe.weight"][positions]

    def norm(x: Tensor, name: str) -> Tensor:
        return rms_norm(x, (D,), 1 + weights[f"{name}.weight"], EPS)

    for index, (rope, window) in enumerate(zip(ROPES, WINDOWS, strict=True)):
        name = f"h.{index}"
        qkv = norm(x, f"{name}.pre_attn") @ weights[f"{name}.attn.c_attn.weight"] + weights[f"{name}.attn.c_attn.bias"]
        q, k, v = (part.view(len(tokens), -1, E) for part in qkv.split([H * E, G * E, G * E], -1))
        q, k = (
            rotated(rms_norm(part, (E,), weights[f"{name}.attn.{which}_norm.weight"], EPS), rope)
            for part, which in ((q, "q"), (k, "k"))
        )
        k, v = (part.repeat_interleave(H // G, 1) for part in (k, v))
        ages = positions[:, None] - positions[None, :]
        seen = (ages >= 0) & (ages < (window or len(tokens)))
        scores = torch.einsum("qhe,khe->hqk", q, k) * 0.2
        attended = torch.einsum("hqk,khe->qhe", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
        made = attended.reshape(len(tokens), H * E) @ weights[f"{name}.attn.c_proj.weight"]
        x = x + norm(made, f"{name}.post_attn")
        y = norm(x, f"{name}.pre_mlp")
        gate, up, down = (weights[f"{name}.mlp.{which}_proj.weight"] for which in ("gate", "up", "down"))
        x = x + norm((silu(y @ gate.T) * (y @ up.T)) @ down.T, f"{name}.post_mlp")
    return norm(x, "ln_f") @ weights["wte.weight"].T


def rotated(x_THE: Tensor, rope: Rope | None) -> Tensor:
    if rope is None:
        return x_THE
    half = rope.width // 2
    angles = torch.arange(len(x_THE))[:, None] * rope.theta ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    one, two, rest = x_THE.split([half, half, E - rope.width], -1)
    return torch.cat((one * cos - two * sin, two * cos + one * sin, rest), -1)


def random_weights(model: DecoderStack) -> dict[str, Tensor]:
    """A checkpoint that leaves the base's prefix out."""
    torch.manual_seed(0)
    shapes = {name.removeprefix("base."): tuple(place.shape) for name, place in model.destinations().items()}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def test_a_made_up_family_computes_what_plain_torch_does(tmp_path: Path) -> None:
    model = build()
    weights = random_weights(model)
    save_file(weights | {"h.0.rotary_emb.inv_freq": torch.ones(2)}, tmp_path / "model.safetensors")
    load_weights(
        model.destinations(),
        [tmp_path / "model.safetensors"],
        ignore=model.ignores,
        twins=model.twins(),
        progress=lambda _done, _total: None,
    )
    tokens = [7 * i % V for i in range(50)]
    logits = PagedExecution(model, CONFIG).sequence(tokens, [30, 7, *[1] * 13], range(4))
    torch.testing.assert_close(logits, expected(weights, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("scale", "softcap"), [(0.25, None), (1.0, 1.5), (0.25, 1.5)])
def test_logits_are_scaled_and_then_capped(scale: float, softcap: float | None) -> None:
    def logits(config: ModelConfig) -> Tensor:
        model = build(config)
        for seed, destination in enumerate(model.destinations().values()):
            destination.copy_(torch.randn(*destination.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
        return PagedExecution(model, config).sequence([7 * i % V for i in range(20)], [20], range(2))

    plain = logits(CONFIG)
    expected = plain * scale if softcap is None else (plain * scale / softcap).tanh() * softcap
    changed = msgspec.structs.replace(CONFIG, logit_scale=scale, logit_softcap=softcap)
    torch.testing.assert_close(logits(changed), expected, rtol=1e-5, atol=1e-6)


def test_layers_of_one_layout_share_their_buffers() -> None:
    model = build()
    arena = StepArena(3, CPU)
    arena.begin(3)
    model.reserve(arena)
    attention, mlps = D + (H + 2 * G) * E + 2 * H * E, [D + width for width in set(WIDTHS)]
    stream = 3 * D  # residual, what a sublayer makes, the final states
    assert arena.nbytes() == 3 * 4 * (stream + attention + sum(mlps))


def test_nothing_is_normed_behind_the_parts_of_a_parallel_layer() -> None:
    parts = Parts(CONFIG, max_positions=8, placement=Placement(torch.float32, CPU))
    norm, config = parts.rms_norm(), CONFIG.layers[0]
    with pytest.raises(ValueError, match="no norm behind"):
        ParallelLayer(
            mixer_norm=norm,
            mixer=parts.attention(config.mixer),
            mlp_norm=norm,
            mlp=parts.mlp(config.mlp),
            mlp_post_norm=parts.rms_norm(),
        )


def test_a_part_of_another_kind_is_an_error() -> None:
    parts = Parts(CONFIG, max_positions=8, placement=Placement(torch.float32, CPU))
    with pytest.raises(TypeError, match="delta"):
        parts.attention(DeltaConfig(num_k_heads=1, num_v_heads=1, k_dim=8, v_dim=8, conv_width=4))
    with pytest.raises(TypeError, match="experts"):
        parts.mlp(ExpertsConfig(count=4, chosen=2, width=8))
