"""The ranks of a tensor-parallel model as threads of the test's process: gloo connects those as well."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from app.contract.config import EngineConfig
from app.kernels.collective import Ranks
from app.runner.group import connect
from app.runner.model_runner import ModelRunner
from app.runner.start import load_runner, warm_up
from tests.runner.driver import discard

T = TypeVar("T")


def on_ranks(size: int, meeting: Path, work: Callable[[Ranks], T]) -> list[T]:
    """What ``work`` gives on each of ``size`` connected ranks, which run at once.

    Args:
        meeting: path of a file that is not there.
    """

    def connected(rank: int) -> T:
        ranks = Ranks(rank, size)
        connect(ranks, torch.device("cpu"), meeting)
        return work(ranks)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(connected, range(size)))


def run_on_ranks(config: EngineConfig, meeting: Path, work: Callable[[ModelRunner], T]) -> list[T]:
    """What ``work`` gives on the runner of each of the config's ranks."""

    def load(ranks: Ranks) -> T:
        runner = load_runner(config, discard, ranks)
        warm_up(runner, discard)
        return work(runner)

    return on_ranks(config.tensor_parallel_size, meeting, load)
