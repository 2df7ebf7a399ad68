"""Makes the manager of an engine's blocks, with the tiers that its configuration asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from app.contract.config import EngineConfig
from app.engine.kv.manager import KVManager
from app.engine.kv.tiered import TieredKVManager
from app.engine.kv.tiers.directory import BlockDirectory
from app.engine.kv.tiers.disk import DiskTier
from app.engine.kv.tiers.fingerprint import fingerprint
from app.engine.kv.tiers.ram import RamTier
from app.engine.kv.tiers.tiers import Tiers
from app.engine.runner import BlockRunner, Runner

_DISK_BYTES = 8 << 30
"""Bytes of all files where the configuration does not say."""

_log = logging.getLogger(__name__)


def new_kv_manager(
    runner: Runner, config: EngineConfig, *, pipeline_depth: int, clock: Callable[[], float]
) -> KVManager:
    """The manager of a runner's blocks.

    Raises:
        ValueError: a group that the engine does not know, or a directory that is not the user's alone.
    """
    info = runner.info
    wanted = config.enable_prefix_caching and (config.prefix_cache_ram or config.prefix_cache_dir)
    if wanted and info.kv_cache.groups:
        if not isinstance(runner, BlockRunner):
            _log.warning("the prefix cache has no tiers: this model's runner copies no blocks")
        elif (tiers := _open_tiers(runner, config)) is not None:
            return TieredKVManager(
                info.kv_cache,
                config,
                tiers,
                max_model_len=info.max_model_len,
                pipeline_depth=pipeline_depth,
                identity=[fingerprint(config, info, runner.page_layout)],
                clock=clock,
            )
    cache_dtypes = (group.dtype for group in info.kv_cache.groups)
    return KVManager(
        info.kv_cache,
        config,
        max_model_len=info.max_model_len,
        pipeline_depth=pipeline_depth,
        identity=(config.model_dir, *config.weights, info.dtype, *cache_dtypes),
    )


def _open_tiers(runner: BlockRunner, config: EngineConfig) -> Tiers | None:
    ram = RamTier(config.prefix_cache_ram) if config.prefix_cache_ram else None
    disk = None
    if config.prefix_cache_dir:
        disk = _open_disk(Path(config.prefix_cache_dir), config.prefix_cache_disk or _DISK_BYTES)
    if ram is None and disk is None:
        return None
    return Tiers(runner, [group.bytes_per_block for group in runner.info.kv_cache.groups], ram, disk)


def _open_disk(path: Path, capacity: int) -> DiskTier | None:
    """The tier on disk; None, and a line in the log, where the disk allows none."""
    try:
        return DiskTier(BlockDirectory(path), capacity)
    except OSError as error:
        _log.warning("the prefix cache has no tier on disk: %s: %s", path, error.strerror or error)
        return None
