"""The store of records that the settings name."""

from pathlib import Path

from duologue.server.config import ServerConfig
from duologue.server.folder_store import FolderStore
from duologue.server.store import RecordStore


def open_store(config: ServerConfig) -> RecordStore | None:
    """The store of records, or None if no records are kept.

    Raises:
        UsageError: it is not the address of one.
        MissingDependency: a package is missing.
    """
    if config.record.startswith(("redis://", "rediss://", "unix://")):
        from duologue.server.redis_store import RedisStore

        return RedisStore(config.record, config.record_expiry)
    return FolderStore(Path(config.record), config.record_expiry) if config.record else None
