"""Models on this machine, and how they get here. Knows files and JSON; no tensors, no text."""

from app.store.errors import ModelNotFound, StoreError
from app.store.files import ModelFiles
from app.store.home import Store
from app.store.hub_id import at_revision
from app.store.models import locate_config, own_name, pull, resolve
from app.store.progress import ProgressReporter, RecordedProgress, SilentProgress, TerminalProgress

__all__ = [
    "ModelFiles",
    "ModelNotFound",
    "ProgressReporter",
    "RecordedProgress",
    "SilentProgress",
    "Store",
    "StoreError",
    "TerminalProgress",
    "at_revision",
    "locate_config",
    "own_name",
    "pull",
    "resolve",
]
