"""`unlearn keys`: signing keys, and the secret of keyed digests, which is kept apart and can be destroyed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pipeline.errors import ConfigError, StorageError
from pipeline.ledger.pseudonyms import key_id, make_key, read_key

__all__ = ["PASSPHRASE", "destroy_secret", "new_secret", "passphrase", "read_secret"]

PASSPHRASE = "UNLEARN_PASSPHRASE"  # noqa: S105 as the name of an environment variable
BLOCK = 4096


def passphrase(file: str) -> str:
    """The passphrase in a file, or else in the environment's `UNLEARN_PASSPHRASE`; empty: none is given.

    Raises:
        ConfigError: the file cannot be read, is empty, or others may read it.
    """
    if not file:
        return os.environ.get(PASSPHRASE, "")
    try:
        found = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        mode = stat.S_IMODE(os.stat(file).st_mode)
    except (OSError, UnicodeDecodeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "not a text"
        raise ConfigError(f"--passphrase-file {file}: {why}", "name a file with one line") from None
    if not found:
        raise ConfigError(f"--passphrase-file {file}: empty", "name a file with one line")
    if mode & 0o077:
        raise ConfigError(f"--passphrase-file {file}: others may read it", f"chmod 600 {file}")
    return found


def new_secret(file: str) -> str:
    """Make a secret for keyed digests, for its owner alone; returns its id.

    Raises:
        ConfigError: a file lies there; no secret is overwritten.
        StorageError: the file cannot be written.
    """
    if os.path.lexists(file):
        raise ConfigError(f"{file}: a file lies there, and no secret is overwritten", "choose another name")
    return key_id(make_key(file))


def read_secret(file: str) -> bytes:
    """The secret in a file. Raises ConfigError where it is not there, is none, or others may read it."""
    secret = read_key(file)
    if stat.S_IMODE(os.stat(file).st_mode) & 0o077:
        raise ConfigError(f"{file}: others may read this secret", f"chmod 600 {file}, or make a new one")
    return secret


def destroy_secret(file: str) -> str:
    """Overwrite a secret and remove it; returns the id that it had. What was digested with it tells nobody anything any more.

    Copies elsewhere, backups, and blocks that a journaling or copying file system keeps are out of reach.

    Raises:
        ConfigError: the file holds no secret, or has further names.
        StorageError: it cannot be overwritten.
    """
    was = key_id(read_key(file))
    try:
        if os.path.islink(file) or os.stat(file).st_nlink > 1:
            raise ConfigError(f"{file}: a link, or a file with several names", "name the file itself, and remove its other names")
        with open(file, "r+b", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            for filler in (os.urandom, bytes):
                stream.seek(0)
                stream.write(filler(max(size, BLOCK)))
                os.fsync(stream.fileno())
        os.unlink(file)
    except OSError as fault:
        raise StorageError(f"{file}: {fault.strerror}", "make it writable for you, then run again") from None
    return was
