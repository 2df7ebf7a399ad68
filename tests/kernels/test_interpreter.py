"""Triton's interpreter, of which work was taken, computes kernels as before and leaves the language as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this machine")

import triton
import triton.language as tl

from app.kernels.gpu import launch

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="needs TRITON_INTERPRET=1")


@triton.jit
def _largest(x):  # type: ignore[no-untyped-def]
    return tl.max(x, axis=0)  # itself a device function, of a module that knows the language by another name


@triton.jit  # type: ignore[untyped-decorator]
def _double_largest(x_ptr, out_ptr, known: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.static_assert(known)
    values = tl.load(x_ptr + tl.program_id(0) * N + tl.arange(0, N))
    tl.store(out_ptr + tl.program_id(0), 2 * _largest(values))


def largest(x: torch.Tensor, *, known: bool = True) -> list[int]:
    """Twice the largest number of each row."""
    out = torch.empty(len(x), dtype=x.dtype)
    _double_largest[(len(x),)](x, out, known, x.shape[1])
    return out.tolist()


def names() -> dict[str, Any]:
    """What a launch replaces, as it is now."""
    return {"load": tl.load, "range": tl.range, "add": tl.tensor.__add__, "reduce": tl.reduce}


def test_device_functions_compute_in_every_program_of_every_launch() -> None:
    x = torch.tensor([[1, 5, 2, 4], [-3, -1, -2, -9]], dtype=torch.int32)
    assert largest(x) == [10, -2]
    assert largest(x) == [10, -2]


def test_the_language_is_left_as_it_was() -> None:
    before = names()
    largest(torch.ones(1, 4))
    assert names() == before


def test_a_launch_that_fails_leaves_the_next_one_alone() -> None:
    before, x = names(), torch.ones(1, 4)
    with pytest.raises(Exception, match="AssertionError"):
        largest(x, known=False)
    assert names() == before
    assert largest(x) == [2]
