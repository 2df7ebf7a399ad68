"""What a record depends on besides tokens, salt and adapter: the model, its formats, the layout of its pages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from app.contract.config import EngineConfig
from app.contract.info import RunnerInfo

FORMAT = 1
"""Version of what is kept; to be raised when kernels come to other keys, values or states of the same model."""
_END_BYTES = 1 << 20
"""Bytes from each end of a file of weights that are looked at, besides its size and time of change."""
_READ_BYTES = 1 << 20


def fingerprint(config: EngineConfig, info: RunnerInfo, page_layout: str) -> str:
    """Digest of weights, the form in which they are served, and what pages hold.

    Raises:
        OSError: a file of weights is gone.
    """
    facts: list[object] = [FORMAT, page_layout, info.dtype, info.quantization, info.kernels, info.kv_cache.block_size]
    facts += [_weights(Path(file)) for file in config.weights]
    facts += [config.load_format, config.seed] if config.load_format == "dummy" else []
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def adapter_contents(path: str) -> str:
    """Digest of an adapter's files; empty where there are none to read."""
    digest = hashlib.sha256()
    try:
        files = sorted(file for file in Path(path).iterdir() if file.suffix in (".json", ".safetensors"))
        for file in files:
            digest.update(repr((file.name, file.stat().st_size)).encode())
            for part in _parts(file):
                digest.update(part)
    except OSError:
        return ""
    return digest.hexdigest() if files else ""


def _weights(file: Path) -> tuple[str, int, int, str]:
    """Name, size, time of change and ends of a file: it may have moved, but not changed."""
    status = file.stat()
    with file.open("rb") as opened:
        digest = hashlib.sha256(opened.read(_END_BYTES))
        opened.seek(max(0, status.st_size - _END_BYTES))
        digest.update(opened.read(_END_BYTES))
    return file.name, status.st_size, status.st_mtime_ns, digest.hexdigest()


def _parts(file: Path) -> Iterable[bytes]:
    with file.open("rb") as opened:
        while part := opened.read(_READ_BYTES):
            yield part
