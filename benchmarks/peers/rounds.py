"""One system through one round: started, asked, stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.text.tokenizer import Tokenizer
from benchmarks.peers.catalogue import ROOT, Homes, Peer
from benchmarks.peers.models import Models
from benchmarks.peers.process import Child, PeerError, cpu_seconds, free_port, machine_cpu_seconds, running
from benchmarks.peers.prompts import RoundPrompts, Sizes
from benchmarks.peers.targets import HttpTarget, Target, WorkerTarget
from benchmarks.peers.workloads import WORKLOADS, warm_up

_POLL = 0.02
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all rounds share."""

    homes: Homes
    models: Models
    tokenizer: Tokenizer
    sizes: Sizes
    workloads: Sequence[str]
    logs: Path

    def measure(self, peer: Peer, prompts: RoundPrompts) -> Iterator[Row]:
        """Runs one system; a row a workload, and one for the start and the memory.

        Raises:
            PeerError: it did not start, ended, or failed a request.
        """
        home = self.homes[peer.system]
        model = peer.prepare(home, self.models)
        port = free_port()
        begun = time.perf_counter()
        command = peer.command(home, model, port)
        log = self.logs / f"{peer.name}.log"
        with running(command, peer.env(home), log, cwd=ROOT, piped=peer.in_process) as child:
            target = self._target(peer, child, model, port)
            ready = time.perf_counter() - begun
            target.ask(prompts.warmup[:1], 1, 1)
            answered = time.perf_counter() - begun
            warm_up(target, prompts, self.sizes)
            for name in self.workloads:
                with _foreign_load(child) as foreign:
                    figures = WORKLOADS[name](target, prompts, self.sizes)
                child.note_memory()
                yield {"workload": name, **figures, **foreign}
            yield {
                "workload": "start",
                "ready_s": ready,
                "first_answer_s": answered,
                "peak_rss_mb": child.note_memory() / 1e6,
                "command": self._shown(command),
            }

    def _target(self, peer: Peer, child: Child, model: Path, port: int) -> Target:
        if peer.in_process:
            worker = WorkerTarget(child, self.tokenizer.encode)
            worker.start(peer.start_timeout)
            return worker
        url = f"http://127.0.0.1:{port}"
        wait_healthy(child, f"{url}/health", peer.start_timeout)
        return HttpTarget(url, peer.model_name(model), peer.ignore_eos, peer.extra_body)

    def _shown(self, command: Sequence[str]) -> str:
        """The command without this machine's directories."""
        return " ".join(Path(word).name if os.sep in word else word for word in command)


def wait_healthy(child: Child, url: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        child.check_alive()
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5.0).is_success:
                return
        time.sleep(_POLL)
    raise PeerError(f"not healthy within {timeout:g} s (log: {child.log})")


@contextlib.contextmanager
def _foreign_load(child: Child) -> Iterator[Row]:
    """Fills in the share of the machine's cores that neither this system nor its client used."""
    found: Row = {}
    started, all_before, own_before = time.perf_counter(), machine_cpu_seconds(), _own(child)
    yield found
    elapsed = time.perf_counter() - started
    foreign = (machine_cpu_seconds() - all_before) - (_own(child) - own_before)
    found["foreign_load"] = max(0.0, foreign / (elapsed * (os.cpu_count() or 1)))


def _own(child: Child) -> float:
    return cpu_seconds([*child.pids, os.getpid()])
