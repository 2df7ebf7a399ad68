"""``GatedDelta`` against transformers' layers, from their weights by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from app.kernels import dispatch
from app.kernels.collective import Ranks
from app.kernels.int8 import quantize_groups
from app.kernels.native.program import Program
from app.kernels.pages import StatePages
from app.kernels.types import Act, AttentionMetadata, LayerState, StepArena
from app.layers.config import DeltaConfig
from app.layers.delta import GatedDelta
from app.quant.cache import PackedCache
from app.quant.placement import Placement, WeightFormat
from tests.kernels.delta import BLOCK, make_rows, native_isas, running
from tests.kernels.util import poisoned, randn, relative_error

WIDTH = 48
SHAPE = DeltaConfig(num_k_heads=2, num_v_heads=4, k_dim=16, v_dim=32, conv_width=4)
CPU = torch.device("cpu")
KINDS = {"qwen3_next": True, "qwen3_5": False}
"""Whether the checkpoint's projections are interleaved."""


def reference(kind: str) -> nn.Module:
    fields = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "linear_num_key_heads": SHAPE.num_k_heads,
        "linear_num_value_heads": SHAPE.num_v_heads,
        "linear_key_head_dim": SHAPE.k_dim,
        "linear_value_head_dim": SHAPE.v_dim,
        "linear_conv_kernel_dim": SHAPE.conv_width,
        "layer_types": ["linear_attention"],
    }
    torch.manual_seed(0)
    layer: nn.Module
    if kind == "qwen3_next":
        layer = Qwen3NextGatedDeltaNet(Qwen3NextConfig(**fields), 0)
    else:
        layer = Qwen3_5GatedDeltaNet(Qwen3_5TextConfig(**fields), 0)
    for weight in layer.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
    return layer.eval()


def loaded(kind: str, placement: Placement) -> GatedDelta:
    layer = GatedDelta(WIDTH, SHAPE, 1e-6, interleaved=KINDS[kind], placement=placement)
    stored = reference(kind).state_dict()
    destinations = layer.destinations("linear_attn")
    assert set(destinations) == {f"linear_attn.{name}" for name in stored}
    for name, tensor in stored.items():
        destination = destinations[f"linear_attn.{name}"]
        assert tuple(destination.shape) == tuple(tensor.shape), name
        assert destination.numel() == tensor.numel()
        destination.copy_(tensor)
    return layer


def new_state(num_blocks: int, dtype: torch.dtype, *, ranks: int = 1) -> LayerState:
    pages = StatePages(
        conv_inputs=SHAPE.conv_width - 1,
        channels=(2 * SHAPE.num_k_heads * SHAPE.k_dim + SHAPE.num_v_heads * SHAPE.v_dim) // ranks,
        num_heads=SHAPE.num_v_heads // ranks,
        k_dim=SHAPE.k_dim,
        v_dim=SHAPE.v_dim,
        dtype=dtype,
    )
    return pages.new(num_blocks, BLOCK, lambda shape, dtype: torch.empty(shape, dtype=dtype))


def run(layer: GatedDelta, x: Tensor, meta: AttentionMetadata, state: LayerState) -> Tensor:
    tokens = x.shape[0]
    arena = StepArena(max(tokens, 1), CPU)
    arena.begin(tokens)
    out = poisoned(tokens, WIDTH)
    buffers = layer.layout.take(arena)
    if buffers.x.scale is None:
        buffers.x.values.copy_(x)
    else:
        values, scale = quantize_groups(x)
        buffers.x.values.copy_(values)
        buffers.x.scale.copy_(scale)
    layer(buffers, Act(out), torch.arange(tokens), state, meta)
    return out


def expected(kind: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = reference(kind)(x[None])[0]
    return made


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        *((kind, "reference") for kind in KINDS),
        *(pytest.param(kind, "triton", marks=[pytest.mark.slow] if kind != "qwen3_next" else []) for kind in KINDS),
    ],
)
def test_a_prompt_in_chunks_agrees_with_transformers(kind: str, implementation: str) -> None:
    with running(implementation):
        layer = loaded(kind, Placement(torch.float32, CPU))
        sizes = (18, 1, 20, 1) if implementation == "reference" else (17, 1, 3, 1)
        x, state = randn(sum(sizes), WIDTH), new_state(4, torch.float32)
        state.conv.fill_(float("nan"))
        state.recurrent.fill_(float("nan"))
        outs, start = [], 0
        for size in sizes:
            rows = make_rows([(start, size)])
            rows.meta.block_tables[0] = torch.arange(rows.meta.block_tables.shape[1])
            outs.append(run(layer, x[start : start + size], rows.meta, state))
            start += size
        assert relative_error(torch.cat(outs), expected(kind, x)) < 1e-5


@pytest.mark.parametrize(
    ("weight_format", "dtype"), [(WeightFormat.PACKED_BF16, torch.bfloat16), (WeightFormat.PACKED_INT8, torch.float32)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_packed_weights_run_natively_and_a_recording_gives_the_same(
    kind: str, weight_format: WeightFormat, dtype: torch.dtype
) -> None:
    with running(native_isas()[0]):
        layer = loaded(kind, Placement(dtype, CPU, weight_format))
        rows, x = make_rows([(0, 20)]), randn(20, WIDTH)
        out = run(layer, x, rows.meta, new_state(rows.num_blocks, dtype))
        assert relative_error(out, expected(kind, x)) < 5e-2
        with dispatch.recording() as calls:
            again = run(layer, x, rows.meta, new_state(rows.num_blocks, dtype))
        Program(dispatch.pool(), calls, dispatch.isa()).run(tokens=20, rows=1, max_query_len=20)
        assert torch.equal(again, out)


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_packed_weights_come_back_from_the_disk(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    placement = Placement(torch.float32, CPU, WeightFormat.PACKED_INT8)
    layer = loaded("qwen3_next", placement)
    again = GatedDelta(WIDTH, SHAPE, 1e-6, interleaved=True, placement=placement)
    cache = PackedCache(tmp_path / "packed", [source], "packed int8")
    cache.save(layer.destinations("x"))
    assert cache.restore(again.destinations("x"))
    assert torch.equal(again.conv_weight, layer.conv_weight)
    assert torch.equal(again.in_proj.weight.data, layer.in_proj.weight.data)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_out_the_heads(kind: str) -> None:
    """What each computes of the output adds up to the whole."""
    x, parts = randn(9, WIDTH), list[Tensor]()

    class Keeps:
        def all_reduce(self, values: Tensor) -> None:
            parts.append(values.clone())

        def all_gather(self, parts: Tensor) -> None:
            raise AssertionError

    with running("reference"):
        for rank in range(2):
            ranks = Ranks(rank, 2)
            ranks.join(Keeps())
            layer = loaded(kind, Placement(torch.float32, CPU, ranks=ranks))
            rows = make_rows([(0, 9)])
            run(layer, x, rows.meta, new_state(rows.num_blocks, torch.float32, ranks=2))
    assert relative_error(parts[0] + parts[1], expected(kind, x)) < 1e-5
