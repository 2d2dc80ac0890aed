"""The family of errors that a user can cause or cure; each carries its exit code and, in its text, the cure.

Anything else that escapes is a bug of ours and ends with a traceback and exit code 1.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GateFailed",
    "IntegrityError",
    "Preempted",
    "StorageError",
    "UnlearnError",
]


class UnlearnError(Exception):
    """Base of all named failures.

    Args:
        message: what is wrong and where (file, shard, key or field).
        cure: what the user can do about it; printed on its own line.
    """

    exit_code = 3

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}\n  cure: {self.cure}" if self.cure else self.message


class ConfigError(UnlearnError):
    """Wrong use or configuration: unknown key, wrong type, unknown name, refused request."""

    exit_code = 2


class DataError(UnlearnError):
    """Bad data: a truncated shard, a sample without image or label, an unreadable image."""


class StorageError(UnlearnError):
    """The storage refused: no space, no permission, not reachable, or a folder in use by another run."""


class IntegrityError(UnlearnError):
    """Bytes differ from what a receipt, a manifest or an index recorded."""


class CheckpointError(UnlearnError):
    """Weights that do not fit: another architecture, missing tensors, non-finite values."""


class GateFailed(UnlearnError):
    """The run finished and its result did not pass."""

    exit_code = 4


class Preempted(UnlearnError):
    """Stopped from outside with its state saved, or killed: run the same command again."""

    exit_code = 75
