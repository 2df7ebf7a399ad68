"""Models on this machine, and how they get here. Knows files and JSON; no tensors, no text."""

from app.store.errors import ModelNotFound, StoreError
from app.store.files import ModelFiles
from app.store.home import Store
from app.store.hub_id import at_revision
from app.store.models import locate_config, pull, resolve
from app.store.progress import ProgressReporter, SilentProgress, TerminalProgress

__all__ = [
    "ModelFiles",
    "ModelNotFound",
    "ProgressReporter",
    "SilentProgress",
    "Store",
    "StoreError",
    "TerminalProgress",
    "at_revision",
    "locate_config",
    "pull",
    "resolve",
]
