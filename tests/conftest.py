"""Fixtures shared by every room. The real model is pulled once, like a user would: without it tests fail."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from app.store import ModelFiles, SilentProgress, Store, pull

# Tests run on every core already; compute threads beside them would wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels are interpreted where a test asks for them (``interpreted``); read when triton is imported. A GPU's
# tests are run with TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# CI repeats the same examples, so that what it says is about the change; elsewhere every run looks further.
# No deadlines: what an example takes is a matter of what else the machine does.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

DEFAULT_MODEL = "smollm2-135m"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without garbage collection, which would go over twelve thousand tests again and again; all of them stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none; nothing else may skip but clients that `make clients` installs."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def smollm2() -> ModelFiles:
    """The embedded default model, in the user's own store."""
    return pull(DEFAULT_MODEL, Store(), SilentProgress())


@pytest.fixture(autouse=True, scope="module")
def kernels_as_they_were() -> Iterator[None]:
    """A module's runners choose no kernels for the next module that the same process runs."""
    yield
    if "app.kernels.dispatch" in sys.modules:  # which brings torch
        from app.kernels import dispatch

        dispatch.configure(dispatch.Mode.AUTO, threads=1)


@pytest.fixture
def interpreted() -> Iterator[None]:
    """Public kernels run their Triton form in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton has no wheel for this machine")
    from app.kernels import dispatch

    dispatch.configure(dispatch.Mode.INTERPRET, threads=1)
    yield
    dispatch.configure(dispatch.Mode.AUTO, threads=1)
