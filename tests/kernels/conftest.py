"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.kernels import dispatch
from app.kernels.native.library import ISAS, NativeError, best_isa


def _forms() -> list[str]:
    try:
        return ["reference", *ISAS[ISAS.index(best_isa()) :]]
    except NativeError:
        return ["reference"]


@pytest.fixture(params=_forms())
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Public kernels run as plain torch, then natively on every instruction set of the machine."""
    before = dispatch._state.mode, dispatch._state.threads, dispatch._state.isa
    if request.param == "reference":
        dispatch.configure(dispatch.Mode.REFERENCE, 1)
    else:
        dispatch.configure(dispatch.Mode.STRICT, 2, isa=request.param)
    yield request.param
    dispatch.configure(*before)
