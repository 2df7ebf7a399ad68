"""Where a checkpoint's rows go that are kept in another order."""

from __future__ import annotations

import pytest
import torch

from app.quant.destination import Extent, Interleaved, Part, Scaled, View, pairs_apart
from app.quant.placement import Placement, WeightFormat
from tests.kernels.util import poisoned, randn


def test_rows_of_heads_and_their_gates_part() -> None:
    """As of a query projection with an output gate: [heads, 2, width] rows."""
    heads, width, k = 3, 4, 5
    fused = poisoned(2 * heads * width, k)
    place = Interleaved([fused[: heads * width], fused[heads * width :]], heads)
    source = randn(2 * heads * width, k)
    assert tuple(place.shape) == tuple(source.shape)
    assert (place.numel(), place.nbytes) == (source.numel(), source.nbytes)
    place.copy_(source)
    by_head = source.view(heads, 2, width, k)
    assert torch.equal(fused[: heads * width], by_head[:, 0].reshape(-1, k))
    assert torch.equal(fused[heads * width :], by_head[:, 1].reshape(-1, k))


def test_parts_of_other_sizes_and_biases() -> None:
    fused = poisoned(12)
    Interleaved([fused[:2], fused[2:8], fused[8:]], 2).copy_(torch.arange(12.0))
    assert fused.tolist() == [0, 6, 1, 2, 3, 7, 8, 9, 4, 5, 10, 11]


def test_one_group_is_a_stack_and_ranks_keep_their_share() -> None:
    first, second = poisoned(2, 3), poisoned(1, 3)
    source = randn(6, 3)
    shares = [Part(first, Extent(0, 2, 4), 4), Part(second, Extent(0, 1, 2), 2)]
    Interleaved(shares).copy_(source)
    assert torch.equal(first, source[2:4])
    assert torch.equal(second, source[5:6])


def test_int8_rows_are_those_of_the_plain_order() -> None:
    placement = Placement(torch.float32, torch.device("cpu"), WeightFormat.INT8)
    source = randn(8, 64)
    interleaved, plain = placement.new_weight(8, 64, bias=False), placement.new_weight(8, 64, bias=False)
    Interleaved([interleaved.rows(0, 4), interleaved.rows(4, 8)], 2).copy_(source)
    plain.rows(0, 8).copy_(source[[0, 1, 4, 5, 2, 3, 6, 7]])
    assert torch.equal(interleaved.weight.values, plain.weight.values)  # type: ignore[union-attr]


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be interleaved 2 times"):
        Interleaved([torch.zeros(3, 2), torch.zeros(4, 2)], 2)
    with pytest.raises(ValueError, match="cannot be interleaved"):
        Interleaved([torch.zeros(4, 2), torch.zeros(4, 3)], 2)


def test_a_view_is_kept_in_its_own_order() -> None:
    memory = poisoned(4, 6)
    place = View(memory, memory[:, 1:4].t().unsqueeze(1))
    source = randn(3, 1, 4)
    assert tuple(place.shape) == (3, 1, 4)
    assert (place.numel(), place.nbytes) == (12, 48)
    place.copy_(source)
    assert torch.equal(memory[:, 1:4], source[:, 0].t())
    assert memory[:, 0].isnan().all()
    assert memory[:, 4:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_tensor_is_rounded_once(dtype: torch.dtype) -> None:
    source, kept = randn(5, 7, dtype=torch.bfloat16), poisoned(5, 7, dtype=dtype)
    place = Scaled(kept, 0.22)
    assert (tuple(place.shape), place.numel(), place.nbytes) == ((5, 7), 35, kept.nbytes)
    place.copy_(source)
    assert torch.equal(kept, (source.float() * 0.22).to(dtype))


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_pairs_of_heads_are_put_apart(width: int, columns: tuple[int, ...]) -> None:
    """Rotating neighbours and then putting them apart is putting apart and then rotating halves."""
    heads, head_dim = 4, 8
    source, kept = randn(heads * head_dim, *columns), poisoned(heads * head_dim, *columns)
    pairs_apart(kept, head_dim, width).copy_(source)
    for head in range(heads):
        of_head, from_head = kept.unflatten(0, (heads, -1))[head], source.unflatten(0, (heads, -1))[head]
        assert torch.equal(of_head[: width // 2], from_head[:width:2])
        assert torch.equal(of_head[width // 2 : width], from_head[1:width:2])
        assert torch.equal(of_head[width:], from_head[width:])


def test_a_rank_puts_its_own_heads_apart() -> None:
    source, whole, kept = randn(32, 3), poisoned(32, 3), poisoned(16, 3)
    pairs_apart(whole, 8, 6).copy_(source)
    place = pairs_apart(Part(kept, Extent(0, 16, 32), 32), 8, 6)
    assert isinstance(place, Part), "no more than the rank's rows are read"
    place.destination.copy_(place.extent.of(source))
    assert torch.equal(kept, whole[16:])
