"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.kernels import dispatch


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Public kernels run their Triton form in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    dispatch.configure(dispatch.Mode.INTERPRET, threads=1)
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
