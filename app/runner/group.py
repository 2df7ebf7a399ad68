"""How the ranks of a tensor-parallel model reach each other: NCCL between GPUs, gloo between processes on a CPU.

Process groups are made one by one instead of by ``init_process_group``, whose one default group would be the whole
process's: a program that has an engine in it may have groups of its own.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.kernels.collective import Ranks
from app.runner.device import has_nccl

_LOOPBACK = "127.0.0.1"
_TIMEOUT = timedelta(minutes=10)
"""Time that one collective may take. That a rank is gone is noticed by other means, much earlier."""
# Named anew in torch 2.13, which warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def connect(ranks: Ranks, device: torch.device, meeting: Path) -> None:
    """Joins the ranks, each of which calls this with the same path of a file that is not there; returns when all have.

    They listen on this machine's loopback interface alone. Not yet run with NCCL.
    """
    rank, size = ranks.rank, ranks.size
    kind = dist.ProcessGroup.BackendType
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    backend: Any
    if has_nccl(device):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")  # over which ranks find each other; data goes between GPUs
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = _TIMEOUT
        backend, backend_type = dist.ProcessGroupNCCL(store, rank, size, nccl), kind.NCCL
    else:
        gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        gloo._timeout = _TIMEOUT
        gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
        backend, backend_type = dist.ProcessGroupGloo(store, rank, size, gloo), kind.GLOO
    group = dist.ProcessGroup(store, rank, size)
    group._set_default_backend(backend_type)
    group._register_backend(torch.device(device.type), backend_type, backend)
    ranks.join(_Group(group, rank))


class _Group:
    """:class:`~app.kernels.collective.Collective` over torch.distributed."""

    def __init__(self, group: dist.ProcessGroup, rank: int) -> None:
        self._group = group
        self._rank = rank

    def all_reduce(self, values: Tensor) -> None:
        dist.all_reduce(values, group=self._group)

    def all_gather(self, parts: Tensor) -> None:
        _all_gather(parts.view(-1), parts[self._rank].view(-1), group=self._group)
