"""Gaussian noise that nobody can draw again: by counter from a secret key, so that it is a function of step and place alone.

A weight's noise does not depend on which rank holds it or how many ranks there are, and no two places or steps share any. The
bits are a ChaCha20 stream (RFC 8439), so that what one place shows tells nothing of another. The key is made by the system's
generator, lives in memory only, and is overwritten in the end: whoever has it can subtract the noise.
"""

from __future__ import annotations

import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

__all__ = ["KEY_BYTES", "SecretNoise", "fresh_key"]

KEY_BYTES = 32
BLOCK = 64
"""Bytes of a block of ChaCha20."""
NUMBERS = BLOCK // 8
"""Normal numbers of a block: eight bytes each."""
PIECE = 1 << 20
"""Numbers made at once, so that memory stays bounded."""
BLOCKS = 1 << 32
"""Blocks that the cipher's counter can tell apart; beyond them another nonce goes on."""


def fresh_key() -> bytes:
    """A key from the operating system's generator."""
    return secrets.token_bytes(KEY_BYTES)


class SecretNoise:
    """Standard normal numbers by step and place.

    Args:
        key: 32 bytes, the same on every rank. It is copied, and `destroy` overwrites the copy.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes, not {KEY_BYTES}")
        self._key = bytearray(key)
        self._destroyed = False

    @property
    def destroyed(self) -> bool:
        """Whether the key is gone."""
        return self._destroyed

    def normal(self, step: int, start: int, count: int) -> NDArray[np.float64]:
        """Numbers of places `start` to `start + count` at a step, N(0, 1), fp64 [count]; at most 8.6 in size.

        Raises:
            RuntimeError: the key was destroyed.
        """
        if self._destroyed:
            raise RuntimeError("noise was asked of a key that was destroyed")
        found = np.empty(count, dtype=np.float64)
        for begin in range(0, count, PIECE):
            some = min(PIECE, count - begin)
            found[begin : begin + some] = self._piece(step, start + begin, some)
        return found

    def _piece(self, step: int, start: int, count: int) -> NDArray[np.float64]:
        first, last = start // NUMBERS, -(-(start + count) // NUMBERS)
        parts = []
        while first < last:
            high, low = divmod(first, BLOCKS)
            some = min(last - first, BLOCKS - low)
            parts.append(self._stream(step, high, low, some))
            first += some
        words = np.frombuffer(b"".join(parts), dtype="<u4").reshape(-1, 2)
        # A pair of places makes one radius and one angle (Box and Muller): 64 bits for the radius, so that the tail is there.
        words = words.reshape(-1, 4).astype(np.uint64)
        radius_bits, angle_bits = words[:, 0] << np.uint64(21) | words[:, 1] >> np.uint64(11), words[:, 2] << np.uint64(21)
        angle_bits |= words[:, 3] >> np.uint64(11)
        radius = np.sqrt(-2.0 * np.log((radius_bits.astype(np.float64) + 1.0) * 2.0**-53))
        angle = angle_bits.astype(np.float64) * (2.0**-53 * 2 * np.pi)
        numbers = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
        begin = start % NUMBERS
        return numbers[begin : begin + count]

    def _stream(self, step: int, high: int, low: int, blocks: int) -> bytes:
        # RFC 8439 as `cryptography` takes it: a counter of four bytes, and a nonce of twelve.
        nonce = low.to_bytes(4, "little") + high.to_bytes(4, "little") + step.to_bytes(8, "little")
        return Cipher(ChaCha20(bytes(self._key), nonce), mode=None).encryptor().update(bytes(blocks * BLOCK))

    def lend(self) -> bytearray:
        """The key itself, for kernels that make the same stream; not a copy, so that `destroy` overwrites it.

        Raises:
            RuntimeError: the key was destroyed.
        """
        if self._destroyed:
            raise RuntimeError("noise was asked of a key that was destroyed")
        return self._key

    def destroy(self) -> None:
        """Overwrite the key."""
        self._key[:] = bytes(KEY_BYTES)
        self._destroyed = True

    def held_in(self, content: bytes) -> bool:
        """Whether the key stands in `content`, as bytes or as hexadecimal text of either case."""
        key = bytes(self._key)
        return key in content or key.hex().encode() in content.lower()
