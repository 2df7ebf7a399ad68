"""``latent_write`` in every form against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from app.kernels.latent_write import latent_write
from app.kernels.types import LayerLatents
from tests.kernels.delta import IMPLEMENTATIONS, running
from tests.kernels.latents import rotated64
from tests.kernels.util import TOLERANCE, poisoned, randn, relative_error

POSITIONS, BLOCK = 40, 16


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with running(request.param):
        yield request.param


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("heads", "rank", "rotary", "nope"), [(3, 32, 8, 16), (1, 70, 6, 5), (5, 16, 34, 3)])
@pytest.mark.parametrize(
    ("dtype", "page_dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_against_fp64(
    implementation: str, dtype: torch.dtype, page_dtype: torch.dtype, heads: int, rank: int, rotary: int, nope: int,
    interleaved: bool,
) -> None:  # fmt: skip
    tokens = 5
    latent, norm = randn(tokens, rank + rotary, seed=1, dtype=dtype), randn(rank, seed=2, dtype=dtype)
    q = randn(tokens, heads, nope + rotary, seed=3, dtype=dtype)
    out = poisoned(tokens, heads, rank + rotary, dtype=dtype)
    angles = randn(POSITIONS, rotary // 2, seed=4).double()
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).float()
    pages = poisoned(3, BLOCK, rank + rotary, dtype=page_dtype)
    slots, positions = torch.tensor([33, 0, 17, 47, 16]), torch.tensor([7, 0, 39, 2, 11])
    turned, rotated, to = q[..., nope:], out[..., rank:], LayerLatents(pages)
    latent_write(latent, norm, 1e-3, turned, positions, table, to, slots, rotated, interleaved=interleaved)
    c = latent[:, :rank].double()
    normed = c / (c.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.double()
    key = rotated64(latent[:, None, rank:], angles[positions], interleaved=interleaved)[:, 0]
    written = pages.view(-1, rank + rotary)
    assert relative_error(written[slots], torch.cat((normed, key), -1)) < TOLERANCE[page_dtype]
    assert relative_error(rotated, rotated64(turned, angles[positions], interleaved=interleaved)) < TOLERANCE[dtype]
    assert out[..., :rank].isnan().all()
    others = torch.ones(len(written), dtype=torch.bool).index_fill(0, slots, False)
    assert written[others].isnan().all()


def test_arguments_are_checked(implementation: str) -> None:
    latent, q, table = randn(2, 20), randn(2, 1, 4), randn(9, 4)
    positions = slots = torch.arange(2)
    pages = LayerLatents(torch.empty(1, 16, 20))

    def write(**changes: torch.Tensor | LayerLatents) -> None:
        how = {"norm_C": randn(16), "q_THR": q, "rope_PR": table, "pages": pages, **changes}
        latent_write(
            latent,
            eps=1e-6,
            positions_T=positions,
            slot_mapping_T=slots,
            q_out_THR=torch.empty_like(how["q_THR"]),  # type: ignore[arg-type]
            interleaved=True,
            **how,  # type: ignore[arg-type]
        )

    write()
    with pytest.raises(ValueError, match="latent has shape"):
        write(norm_C=randn(17))
    with pytest.raises(ValueError, match="an even number"):
        write(norm_C=randn(17), q_THR=randn(2, 1, 3), rope_PR=randn(9, 3))
    with pytest.raises(ValueError, match="pages have shape"):
        write(pages=LayerLatents(torch.empty(1, 2, 16, 20)))
    with pytest.raises(ValueError, match=r"pages is torch\.int8"):
        write(pages=LayerLatents(torch.empty(1, 16, 20, dtype=torch.int8)))
