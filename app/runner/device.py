"""Chooses the device that a model runs on, and its dtype; what was asked is checked against what there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from app.kernels.collective import ONE_RANK, Ranks
from app.runner.errors import RunnerError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MEMINFO = Path("/proc/meminfo")
META = torch.device("meta")
"""The device on which tensors have shapes and no memory."""


def choose_device(name: str, ranks: Ranks = ONE_RANK) -> torch.device:
    """The device called ``name`` (``auto``, ``cpu``, ``cuda``, ``cuda:1``); ``auto`` is a GPU where there is one.

    Each of several ranks gets a GPU of its own. A GPU with a number becomes the calling thread's current one, on which
    kernels are launched.

    Raises:
        RunnerError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunnerError(f"device = {name!r} is not a device; use 'cpu' or 'cuda'") from None
    if device.type not in ("cpu", "cuda"):
        raise RunnerError(f"device = {name!r} is not supported; use 'cpu' or 'cuda'")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise RunnerError(f"device = {name!r}: this machine has {count} CUDA devices that torch can use")
        if ranks.size > 1:
            device = _gpu_of_rank(name, ranks, count)
        if device.index is not None:
            torch.cuda.set_device(device)
    return device


def _gpu_of_rank(name: str, ranks: Ranks, count: int) -> torch.device:
    if ":" in name:
        raise RunnerError(f"device = {name!r} is one GPU for tensor_parallel_size = {ranks.size} ranks; use 'cuda'")
    if ranks.size > count:
        raise RunnerError(
            f"tensor_parallel_size = {ranks.size}: this machine has {count} CUDA devices that torch can use"
        )
    return torch.device("cuda", ranks.rank)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype called ``name``; ``auto`` is fp32 on a CPU and bf16 on a GPU.

    Raises:
        RunnerError: unknown, or too slow and inexact to be of use on the device.
    """
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise RunnerError(f"dtype = {name!r} is not supported; use one of {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise RunnerError("dtype = 'float16' is for CUDA devices only; use 'bfloat16' or 'float32' on a CPU")
    return DTYPES[name]


def runs_ahead(device: torch.device) -> bool:
    """Whether the device computes while the host goes on. A CPU has computed when a call returns."""
    return device.type == "cuda"


def has_own_memory(device: torch.device) -> bool:
    """Whether the device has memory that only the engine uses, which can be planned to the last byte."""
    return device.type == "cuda"


def has_nccl(device: torch.device) -> bool:
    """Whether ranks on such devices communicate over NCCL; they do over gloo if not."""
    return device.type == "cuda"


def choose_threads(threads: int) -> int:
    """Compute threads; for 0, ``OMP_NUM_THREADS`` or one for each core that this process may run on."""
    if threads > 0:
        return threads
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int) -> None:
    """Sets the threads of torch's own operations in this process."""
    torch.set_num_threads(threads)


def available_memory(device: torch.device) -> int:
    """Bytes that could be allocated on the device now without swapping: an estimate on a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # No such figure on macOS: all memory there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
