"""``ShortConv`` against transformers' layer, from its weights by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from app.kernels.collective import Ranks
from app.kernels.pages import StatePages
from app.kernels.types import Act, StepArena
from app.layers.config import ShortConvConfig
from app.layers.short_conv import ShortConv
from app.quant.cache import PackedCache
from app.quant.placement import Placement, WeightFormat
from tests.kernels.delta import BLOCK, Rows, make_rows, native_isas, running
from tests.kernels.util import poisoned, randn, relative_error

WIDTH, TAPS = 48, 3
CPU = torch.device("cpu")


def reference(*, bias: bool) -> Lfm2ShortConv:
    torch.manual_seed(0)
    config = Lfm2Config(hidden_size=WIDTH, conv_L_cache=TAPS, conv_bias=bias, num_hidden_layers=1, layer_types=["conv"])
    return Lfm2ShortConv(config, 0).eval()


def loaded(placement: Placement, *, bias: bool = True) -> ShortConv:
    config = ShortConvConfig(channels=WIDTH, conv_width=TAPS, bias=bias)
    layer = ShortConv(config, WIDTH, placement=placement)
    destinations, stored = layer.destinations("conv"), reference(bias=bias).state_dict()
    assert set(destinations) == {f"conv.{name}" for name in stored}
    for name, tensor in stored.items():
        destination = destinations[f"conv.{name}"]
        assert tuple(destination.shape) == tuple(tensor.shape), name
        destination.copy_(tensor)
    return layer


def run(layer: ShortConv, x: Tensor, rows: Rows, *, ranks: int = 1) -> Tensor:
    pages = StatePages(conv_inputs=TAPS - 1, channels=WIDTH // ranks, dtype=torch.float32)
    state = pages.new(rows.num_blocks, BLOCK, lambda shape, dtype: torch.empty(shape, dtype=dtype))
    arena = StepArena(len(x), CPU)
    arena.begin(len(x))
    buffers, out = layer.layout.take(arena), poisoned(*x.shape)
    buffers.x.values.copy_(x)
    layer(buffers, Act(out), torch.arange(len(x)), state, rows.meta)
    return out


@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_transformers(bias: bool) -> None:
    x = randn(20, WIDTH)
    with running("reference"), torch.no_grad():
        out = run(loaded(Placement(torch.float32, CPU), bias=bias), x, make_rows([(0, 20)]))
        assert relative_error(out, reference(bias=bias)(x[None])[0]) < 1e-5


@pytest.mark.parametrize("bias", [False, True])
def test_ranks_share_out_the_channels(bias: bool) -> None:
    """What each computes of the output adds up to the whole."""
    x, parts = randn(9, WIDTH), list[Tensor]()

    class Keeps:
        def all_reduce(self, values: Tensor) -> None:
            parts.append(values.clone())

        def all_gather(self, parts: Tensor) -> None:
            raise AssertionError

    with running("reference"), torch.no_grad():
        for rank in range(3):
            ranks = Ranks(rank, 3)
            ranks.join(Keeps())
            layer = loaded(Placement(torch.float32, CPU, ranks=ranks), bias=bias)
            run(layer, x, make_rows([(0, 9)]), ranks=3)
        assert relative_error(parts[0] + parts[1] + parts[2], reference(bias=bias)(x[None])[0]) < 1e-5


@pytest.mark.skipif(not native_isas(), reason="no native kernels here")
def test_packed_weights_come_back_from_the_disk(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    placement = Placement(torch.float32, CPU, WeightFormat.PACKED_INT8)
    layer = loaded(placement)
    again = ShortConv(ShortConvConfig(channels=WIDTH, conv_width=TAPS, bias=True), WIDTH, placement=placement)
    cache = PackedCache(tmp_path / "packed", [source], "packed int8")
    cache.save(layer.destinations("x"))
    assert cache.restore(again.destinations("x"))
    assert torch.equal(again.weight_KC, layer.weight_KC)
    assert again.bias_C is not None
    assert again.bias_C.equal(reference(bias=True).conv.bias)
    assert torch.equal(again.in_proj.weight.data, layer.in_proj.weight.data)  # type: ignore[union-attr]
