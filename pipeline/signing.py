"""Keys, DSSE envelopes around in-toto statements, and OpenSSF model-signing of a folder of weights. Works offline; no torch.

The keys are on the curve P-256: of the curves that OpenSSF model-signing takes the common one (it takes no Ed25519), so that one
key serves both signatures and anyone can check the weights with `model_signing verify key`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.decode import canonical
from pipeline.errors import ConfigError, IntegrityError, StorageError

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

__all__ = ["Opened", "SigningKey", "make_keys", "read_private", "read_public", "seal", "sign_folder", "unseal", "verify_folder"]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
INSTALL = "pip install 'i2i-unlearn[sign]'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key that was read, and the file that it came from. Its representation tells no key material."""

    key_id: str
    file: str
    passphrase: str = dataclasses.field(repr=False)
    private: Any = dataclasses.field(repr=False)
    public: SSlibKey = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """What an envelope holds, and the ids of the keys that it says it was signed with. `trusted`: a given key signed it."""

    payload: Mapping[str, Any]
    key_ids: tuple[str, ...]
    trusted: bool


def make_keys(name: str, *, passphrase: str = "") -> str:
    """Make a pair of keys: the private one in NAME.key, for its owner alone, the public one in NAME.pub.

    Args:
        name: path without an ending.
        passphrase: encrypts the private key; empty: the file's mode is all that guards it.

    Returns:
        The id of the key.

    Raises:
        ConfigError: one of the files is there already; no key is ever overwritten.
        StorageError: a file cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    guard = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, guard)
    public = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for file in (f"{name}.key", f"{name}.pub"):
        if os.path.lexists(file):
            raise ConfigError(f"{file}: a file lies there, and no key is overwritten", "choose another name")
    for file, content, mode in ((f"{name}.key", secret, 0o600), (f"{name}.pub", public, 0o644)):
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except FileExistsError:
            raise ConfigError(f"{file}: a file lies there, and no key is overwritten", "choose another name") from None
        except OSError as fault:
            raise StorageError(f"{file}: {fault.strerror}", "choose another folder") from None
    return _public(public).keyid


def read_private(file: str, *, passphrase: str = "") -> SigningKey:
    """Read a private key.

    Raises:
        ConfigError: not there, open to others, encrypted with another passphrase, or no key on the curve P-256.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _read(file)
    if stat.S_IMODE(os.stat(file).st_mode) & 0o077:
        raise ConfigError(f"{file}: others may read this private key", f"chmod 600 {file}, or make a new key")
    try:
        private = serialization.load_pem_private_key(content, passphrase.encode() if passphrase else None)
    except TypeError:  # encrypted without a passphrase, or the reverse
        cure = "give it with --passphrase-file or UNLEARN_PASSPHRASE" if not passphrase else "leave the passphrase out"
        what = "needs its passphrase" if not passphrase else "is not encrypted, and a passphrase was given"
        raise ConfigError(f"{file}: the private key {what}", cure) from None
    except ValueError:
        raise ConfigError(f"{file}: no private key, or another passphrase", "name the file that ends with .key") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise ConfigError(f"{file}: not a key on the curve P-256", "make one: unlearn keys new NAME")
    public = _public(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return SigningKey(key_id=public.keyid, file=file, passphrase=passphrase, private=private, public=public)


def read_public(file: str) -> SSlibKey:
    """Read a public key. Raises ConfigError where it is not there or is none on the curve P-256."""
    try:
        return _public(_read(file))
    except ValueError:
        raise ConfigError(f"{file}: not a public key on the curve P-256", "name the file that ends with .pub") from None


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as fault:
        raise ConfigError(f"{file}: {fault.strerror}", "name a key that `unlearn keys new` made") from None


def _public(content: bytes) -> SSlibKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from securesystemslib.signer import SSlibKey

    key = serialization.load_pem_public_key(content)
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise ValueError("another kind of key")  # noqa: TRY004 as unreadable files are
    return SSlibKey.from_crypto(key)


def seal(payload: Any, key: SigningKey) -> bytes:
    """A DSSE envelope around the canonical JSON of a statement, signed."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(canonical(payload), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key.private, key.public))
    return canonical(envelope.to_dict())


def unseal(content: bytes, *, where: str, key: SSlibKey | None = None) -> Opened:
    """Open an envelope that `seal` made.

    Args:
        content: bytes of the file.
        where: file to name in the message.
        key: who must have signed it; None: nobody's signature is checked, and nothing is trusted.

    Raises:
        IntegrityError: any byte is not as it was written, or the key did not sign it.
    """
    envelope = _envelope(content, where)
    ids = tuple(envelope.signatures)
    if key is not None:
        from securesystemslib.exceptions import VerificationError

        try:
            envelope.verify([key], 1)
        except VerificationError:
            what = (
                "the signature does not fit"
                if key.keyid in ids
                else f"signed by {', '.join(ids) or 'nobody'}, not by {key.keyid}"
            )
            raise IntegrityError(f"{where}: {what}", "get the release, or the public key, again from its owner") from None
    try:
        payload = json.loads(envelope.payload)
        intact = isinstance(payload, dict) and canonical(payload) == envelope.payload
    except ValueError:
        intact = False
    if not intact:
        raise IntegrityError(f"{where}: changed: holds no statement", "get the release again from its owner")
    return Opened(payload=payload, key_ids=ids, trusted=key is not None)


def _envelope(content: bytes, where: str) -> Envelope:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError

    try:
        data = json.loads(content)
        # Lenient Base64 would let bytes change unseen.
        for text in (data["payload"], *(item["sig"] for item in data["signatures"])):
            if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
                raise ValueError("not canonical")
        envelope = Envelope.from_dict(data)
        intact = canonical(envelope.to_dict()) == content and envelope.payload_type == PAYLOAD_TYPE and bool(envelope.signatures)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error, FormatError):
        intact = False
    if not intact:
        raise IntegrityError(f"{where}: changed: not a signed envelope", "get the release again from its owner")
    return envelope


def sign_folder(folder: str, signature: str, key: SigningKey, *, leave_out: Iterable[str] = ()) -> None:
    """Sign all files of a local folder with OpenSSF model-signing.

    Args:
        folder: local path.
        signature: file to write the signature to.
        leave_out: names of files in the folder that are not signed.

    Raises:
        ConfigError: model-signing is not installed.
    """
    try:
        from model_signing import hashing, signing
    except ImportError as fault:
        raise ConfigError(f"weights cannot be signed: {fault}", INSTALL) from None
    # Relative names: absolute ones would be written into the signature, and tell of this machine.
    settings = hashing.Config().set_ignored_paths(paths=list(leave_out))
    password: Any = key.passphrase.encode() or None  # the library says text, and hands it on to where bytes are wanted
    signer = signing.Config().use_elliptic_key_signer(private_key=key.file, password=password)
    signer.set_hashing_config(settings).sign(folder, signature)


def verify_folder(folder: str, signature: str, key: SSlibKey) -> str:
    """Check a signature that `sign_folder` made; empty: it fits, otherwise what does not.

    Args:
        folder: local path.
        signature: file with the signature.
        key: who must have made it.

    Raises:
        ConfigError: model-signing is not installed.
    """
    try:
        from model_signing import verifying
    except ImportError as fault:
        raise ConfigError(f"the signature of the weights is not checked: {fault}", INSTALL) from None
    with tempfile.TemporaryDirectory(prefix="unlearn-") as scratch:
        public = Path(scratch, "key.pub")
        public.write_text(key.keyval["public"])
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
            verifier.set_ignore_unsigned_files(True).verify(Path(folder), Path(signature))
        except Exception as fault:  # the library names what does not fit, in errors of many kinds
            changed = re.findall(r"Hash mismatch for \\?'(.*?)\\?':", str(fault))
            return f"{', '.join(changed)}: changed" if changed else " ".join(str(fault).split()) or type(fault).__name__
    return ""
