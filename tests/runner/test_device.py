"""Which device a model runs on, on a machine that says it has two GPUs."""

from __future__ import annotations

import pytest
import torch

from app.kernels.collective import Ranks
from app.runner.device import choose_device
from app.runner.errors import RunnerError


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that were made the current one."""
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def test_a_numbered_gpu_becomes_the_current_one(current: list[torch.device]) -> None:
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


def test_each_rank_makes_its_own_gpu_the_current_one(current: list[torch.device]) -> None:
    assert choose_device("auto", Ranks(1, 2)) == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


def test_without_a_number_the_current_gpu_stays(current: list[torch.device]) -> None:
    assert choose_device("auto") == torch.device("cuda")
    assert current == []


@pytest.mark.parametrize(("name", "ranks"), [("cuda:2", Ranks()), ("cuda:1", Ranks(0, 2)), ("cuda", Ranks(0, 3))])
def test_gpus_that_are_not_there(current: list[torch.device], name: str, ranks: Ranks) -> None:
    with pytest.raises(RunnerError):
        choose_device(name, ranks)
    assert current == []
