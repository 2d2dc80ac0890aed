"""Names that stand for subjects and image keys wherever people read: keyed digests, worthless once the key is destroyed.

The key is a file of 64 hexadecimal digits beside the ledger, never in it.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path

from pipeline.errors import ConfigError, StorageError

__all__ = ["key_id", "keyed_digest", "make_key", "pseudonym", "read_key"]


def make_key(path: str) -> bytes:
    """The key in the file `path`, made with mode 0600 where there is none; of several that make one, all get the same.

    Raises:
        ConfigError: the file holds no key.
        StorageError: the file cannot be written.
    """
    own = f"{path}.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        if not Path(path).exists():
            with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(32) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            # A link appears whole or not at all, and never over another's.
            with contextlib.suppress(FileExistsError):
                os.link(own, path)
    except OSError as fault:
        raise StorageError(f"{path}: {fault.strerror}", "name another file with --pseudonym-key") from None
    finally:
        Path(own).unlink(missing_ok=True)
    return read_key(path)


def read_key(path: str) -> bytes:
    """The 32 bytes of the key in the file `path`. Raises ConfigError where the file is not there or holds no key."""
    try:
        text = Path(path).read_text(encoding="ascii").strip()
        found = bytes.fromhex(text)
    except FileNotFoundError:
        cure = "name the ledger's pseudonym key with --pseudonym-key or UNLEARN_PSEUDONYM_KEY"
        raise ConfigError(f"{path}: no such file", cure) from None
    except OSError as fault:
        raise ConfigError(f"{path}: {fault.strerror}", "make the pseudonym key readable for you alone") from None
    except ValueError:
        found = b""
    if len(found) != 32:
        raise ConfigError(f"{path}: not a pseudonym key", "it must hold 64 hexadecimal digits; restore the file")
    return found


def key_id(key: bytes) -> str:
    """16 hexadecimal digits by which a key is known without being told."""
    return hmac.digest(key, b"id\0", "sha256").hex()[:16]


def pseudonym(key: bytes, subject: str) -> str:
    """What stands for a subject: `s-` and 32 hexadecimal digits; empty for an empty subject."""
    return "s-" + keyed_digest(key, "subject", subject)[:32] if subject else ""


def keyed_digest(key: bytes, kind: str, text: str) -> str:
    """HMAC-SHA256 of `kind`, a zero byte and `text`, as 64 hexadecimal digits."""
    return hmac.digest(key, f"{kind}\0{text}".encode(), "sha256").hex()
