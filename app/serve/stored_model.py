"""A model as the settings name it, to be loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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

    def needs(self) -> int:
        """Bytes of memory that it will take, roughly: its weights as they are stored, the KV cache and its tier in
        memory, a process."""
        stored = sum(path.stat().st_size for path in self._files.weights)
        ranks = self._settings.tensor_parallel_size
        tier = self._settings.prefix_cache_ram or 0
        return stored + tier + ranks * ((self._settings.kv_cache_memory or _KV_BYTES) + PROCESS_BYTES)

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
