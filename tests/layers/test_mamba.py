"""``Mamba`` against transformers' layers, from their weights by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from torch import Tensor, nn
from transformers.models.falcon_h1.configuration_falcon_h1 import FalconH1Config
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer, compute_mup_vector
from transformers.models.granitemoehybrid.configuration_granitemoehybrid import GraniteMoeHybridConfig
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer

from app.kernels import dispatch
from app.kernels.collective import Ranks
from app.kernels.int8 import quantize_groups
from app.kernels.native.program import Program
from app.kernels.pages import StatePages
from app.kernels.types import Act, AttentionMetadata, LayerState, StepArena
from app.layers.config import MambaConfig
from app.layers.mamba import Mamba
from app.quant.cache import PackedCache
from app.quant.placement import Placement, WeightFormat
from tests.kernels.delta import BLOCK, make_rows, native_isas, running
from tests.kernels.util import poisoned, randn, relative_error

WIDTH, EPS = 48, 1e-6
CPU = torch.device("cpu")
PLAIN = MambaConfig(num_heads=6, head_dim=16, num_groups=1, state_dim=20, conv_width=4)
GROUPS = structs.replace(
    PLAIN, num_groups=3, conv_width=3, conv_bias=False, in_bias=True, out_bias=True, step_limit=(0.3, 1.5)
)
FACTORS = structs.replace(PLAIN, norm=False, input_scales=(0.5, 2.0, 1.5, 0.7, 1.2))
KINDS = {"plain": PLAIN, "groups": GROUPS, "factors": FACTORS}


def reference(kind: str) -> nn.Module:
    shape = KINDS[kind]
    fields = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": EPS,
        "mamba_n_heads": shape.num_heads,
        "mamba_n_groups": shape.num_groups,
        "mamba_d_state": shape.state_dim,
        "mamba_d_conv": shape.conv_width,
        "mamba_conv_bias": shape.conv_bias,
        "mamba_proj_bias": shape.in_bias,
        "mamba_chunk_size": 16,
        "time_step_limit": list(shape.step_limit),
    }
    torch.manual_seed(0)
    layer: nn.Module
    if kind == "factors":
        config = FalconH1Config(
            **fields, mamba_d_ssm=shape.inner, mamba_rms_norm=False, ssm_multipliers=list(shape.input_scales)
        )
        layer = FalconH1Mixer(config, 0)
        layer.mup_vector = compute_mup_vector(config)
    else:
        layer = GraniteMoeHybridMambaLayer(GraniteMoeHybridConfig(**fields, mamba_expand=2), 0)
    for name, weight in layer.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
        elif not name.endswith("A_log"):
            nn.init.normal_(weight, mean=1.0, std=0.3)
    return layer.eval()


def loaded(kind: str, placement: Placement) -> Mamba:
    layer = Mamba(WIDTH, KINDS[kind], EPS, placement=placement)
    stored = reference(kind).state_dict()
    stored.pop("mup_vector", None)
    destinations = layer.destinations("mamba")
    assert set(destinations) == {f"mamba.{name}" for name in stored}
    for name, tensor in stored.items():
        destination = destinations[f"mamba.{name}"]
        assert tuple(destination.shape) == tuple(tensor.shape), name
        destination.copy_(tensor)
    return layer


def new_state(kind: str, num_blocks: int, dtype: torch.dtype) -> LayerState:
    shape = KINDS[kind]
    pages = StatePages(
        conv_inputs=shape.conv_width - 1,
        channels=shape.channels,
        num_heads=shape.num_heads,
        k_dim=shape.state_dim,
        v_dim=shape.head_dim,
        dtype=dtype,
    )
    return pages.new(num_blocks, BLOCK, lambda size, dtype: torch.full(size, torch.nan, dtype=dtype))


def run(layer: Mamba, x: Tensor, meta: AttentionMetadata, state: LayerState, added: Tensor | None = None) -> Tensor:
    tokens = x.shape[0]
    arena = StepArena(max(tokens, 1), CPU)
    arena.begin(tokens)
    out = poisoned(tokens, WIDTH) if added is None else added.clone()
    buffers = layer.layout.take(arena)
    if buffers.x.scale is None:
        buffers.x.values.copy_(x)
    else:
        values, scale = quantize_groups(x)
        buffers.x.values.copy_(values)
        buffers.x.scale.copy_(scale)
    layer(buffers, Act(out), torch.arange(tokens), state, meta, add=added is not None)
    return out


def expected(kind: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = reference(kind)(x[None])[0]
    return made


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        *((kind, "reference") for kind in KINDS),
        *(pytest.param(kind, "triton", marks=[pytest.mark.slow] if kind != "groups" else []) for kind in KINDS),
    ],
)
def test_a_prompt_in_chunks_agrees_with_transformers(kind: str, implementation: str) -> None:
    with running(implementation):
        layer = loaded(kind, Placement(torch.float32, CPU))
        sizes = (18, 1, 20, 1) if implementation == "reference" else (17, 1, 3, 1)
        x, state = randn(sum(sizes), WIDTH), new_state(kind, 4, torch.float32)
        outs, start = [], 0
        for size in sizes:
            rows = make_rows([(start, size)])
            rows.meta.block_tables[0] = torch.arange(rows.meta.block_tables.shape[1])
            outs.append(run(layer, x[start : start + size], rows.meta, state))
            start += size
        assert relative_error(torch.cat(outs), expected(kind, x)) < 1e-5


def test_a_result_may_be_added_to_what_is_there() -> None:
    with running("reference"):
        layer, rows, x = loaded("groups", Placement(torch.float32, CPU)), make_rows([(0, 9)]), randn(9, WIDTH)
        alone = run(layer, x, rows.meta, new_state("groups", rows.num_blocks, torch.float32))
        before = randn(9, WIDTH, seed=1)
        both = run(layer, x, rows.meta, new_state("groups", rows.num_blocks, torch.float32), before)
    assert relative_error(both, alone + before) < 1e-6


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
        out = run(layer, x, rows.meta, new_state(kind, rows.num_blocks, dtype))
        assert relative_error(out, expected(kind, x)) < 5e-2
        with dispatch.recording() as calls:
            again = run(layer, x, rows.meta, new_state(kind, rows.num_blocks, dtype))
        Program(dispatch.pool(), calls, dispatch.isa()).run(tokens=20, rows=1, max_query_len=20)
        assert torch.equal(again, out)


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_packed_weights_come_back_from_the_disk_of_the_same_factors_alone(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    placement = Placement(torch.float32, CPU, WeightFormat.PACKED_INT8)
    layer = loaded("factors", placement)
    cache = PackedCache(tmp_path / "packed", [source], "packed int8")
    cache.save(layer.destinations("x"))
    again = Mamba(WIDTH, FACTORS, EPS, placement=placement)
    assert cache.restore(again.destinations("x"))
    assert torch.equal(again.conv_weight, layer.conv_weight)
    assert torch.equal(again.in_proj.weight.data, layer.in_proj.weight.data)  # type: ignore[union-attr]
    others = Mamba(WIDTH, structs.replace(FACTORS, output_scale=0.5), EPS, placement=placement)
    assert not cache.restore(others.destinations("x"))


def test_ranks_do_not_share_one() -> None:
    placement = replace(Placement(torch.float32, CPU), ranks=Ranks(0, 2))
    with pytest.raises(ValueError, match="ranks do not share"):
        Mamba(WIDTH, PLAIN, EPS, placement=placement)
