"""A model as the settings name it, to be loaded when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.serve.engine import engine_config
from app.serve.needs import measured_needs
from app.serve.supervised import new_supervisor
from app.serving.engine_client import EngineClient
from app.serving.memory import PROCESS_BYTES
from app.serving.supervisor import Supervisor
from app.settings import Settings
from app.store import ModelFiles, ModelNotFound, ProgressReporter, Store, at_revision, pull, resolve
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.serving.generator import Generator

_KV_BYTES = 1 << 30
"""Bytes of a KV cache where the settings name none, on a CPU."""


class StoredModel:
    """The files of a model, and what is made of them; a :class:`app.serving.resident.ModelSource`.

    Args:
        settings: the model's own.
    """

    def __init__(self, settings: Settings, client: EngineClient, metrics: Metrics) -> None:
        self._settings = settings
        self._client = client
        self._metrics = metrics
        self._found: ModelFiles | None = None
        self._measuring = threading.Lock()
        self._needs: int | None = None

    @property
    def takes_the_rest(self) -> bool:
        """Whether its KV cache has all memory of a GPU that is left."""
        return self._settings.kv_cache_memory is None

    def is_here(self) -> bool:
        """Whether its files are on this machine. Raises :class:`StoreError`."""
        settings = self._settings
        try:
            self._found = resolve(
                at_revision(settings.model, settings.revision),
                Store(settings.home),
                need_weights=settings.load_format != "dummy",
                via=settings.via,
            )
        except ModelNotFound:
            return False
        return True

    def fetch(self, progress: ProgressReporter) -> None:
        """Brings its files here, unless :meth:`is_here` found them. Raises :class:`StoreError`."""
        settings = self._settings
        if not self.is_here():
            name = at_revision(settings.model, settings.revision)
            self._found = pull(name, Store(settings.home), progress, via=settings.via)

    def guess(self) -> int:
        """Bytes of memory that it will take, by the size of its files: its weights may be kept in another format."""
        stored = sum(path.stat().st_size for path in self._files.weights)
        ranks = self._settings.tensor_parallel_size
        return stored + self._tier_bytes + ranks * ((self._settings.kv_cache_memory or _KV_BYTES) + PROCESS_BYTES)

    def needs(self) -> int:
        """Bytes of memory that it will take: weights and KV cache in the formats that its engine will choose, the KV
        cache's tier in memory, and a process a rank.
        """
        with self._measuring:  # who comes second gets what the first found out
            if self._needs is None:
                files = self._files
                measured = measured_needs(engine_config(self._settings, files.directory, files.weights))
                processes = self._settings.tensor_parallel_size * PROCESS_BYTES
                self._needs = self.guess() if measured is None else measured + self._tier_bytes + processes
            return self._needs

    @property
    def _tier_bytes(self) -> int:
        return self._settings.prefix_cache_ram or 0

    def text_side(self) -> Generator:
        """Its tokenizer, templates and defaults. Raises ValueError."""
        from app.serve.text_side import text_side  # the engine's process starts before it is imported
        from app.serving.ledger import Ledger

        return text_side(self._settings, self._files, self._client, Ledger(self._metrics))

    def engine(self, on_give_up: Callable[[str], None]) -> Supervisor:
        """The supervisor of an engine for it."""
        return new_supervisor(self._settings, self._files, self._client, self._metrics, on_give_up)

    @property
    def _files(self) -> ModelFiles:
        if self._found is None:
            raise RuntimeError("its files have not been looked for")
        return self._found
