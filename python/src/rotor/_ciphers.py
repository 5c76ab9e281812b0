"""The suites of messages (spec/message.md) by number and by name."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ._xaes import TAG_SIZE, XAES
from .errors import RotorError


class Aead(Protocol):
    """What a message is made with."""

    def seal(self, nonce: bytes, plaintext: bytes, data: bytes) -> bytes:
        """Ciphertext and tag."""

    def open(self, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
        """The plaintext. ``InvalidTag`` when anything is wrong."""


class _Library:
    """An AEAD of the library."""

    def __init__(self, aead: AESGCM | ChaCha20Poly1305) -> None:
        self._aead = aead

    def seal(self, nonce: bytes, plaintext: bytes, data: bytes) -> bytes:
        return self._aead.encrypt(nonce, plaintext, data)

    def open(self, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
        if len(sealed) < TAG_SIZE:
            raise InvalidTag
        return self._aead.decrypt(nonce, sealed, data)


def _aes(size: int) -> Callable[[bytes], Aead]:
    def make(key: bytes) -> Aead:
        if len(key) != size:
            raise ValueError(f"the key has {size} bytes")
        return _Library(AESGCM(key))

    return make


def _rotate(x: int, n: int) -> int:
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def _hchacha20(key: bytes, nonce: bytes) -> bytes:
    """draft-irtf-cfrg-xchacha-03, 2.2: 20 rounds of ChaCha without the final addition; rows 0 and 3 are the key."""
    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
    for a, b, c, d in (columns + diagonals) * 10:
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = _rotate(s[z] ^ s[x], n)
    return struct.pack("<8I", *s[:4], *s[12:])


class _XChaCha:
    """XChaCha20-Poly1305: a key for each message, made of the first 16 bytes of its nonce."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("XChaCha20-Poly1305 takes a key of 32 bytes")
        self._key = key

    def _derive(self, nonce: bytes) -> tuple[_Library, bytes]:
        return _Library(ChaCha20Poly1305(_hchacha20(self._key, nonce[:16]))), bytes(4) + nonce[16:]

    def seal(self, nonce: bytes, plaintext: bytes, data: bytes) -> bytes:
        aead, rest = self._derive(nonce)
        return aead.seal(rest, plaintext, data)

    def open(self, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
        aead, rest = self._derive(nonce)
        return aead.open(rest, sealed, data)


@dataclass(frozen=True)
class Suite:
    """A row of the table: the first byte of a message, the algorithm, and how long its nonce is."""

    number: int
    algorithm: str
    nonce: int
    aead: Callable[[bytes], Aead]


SUITES = {
    s.number: s
    for s in (
        Suite(1, "XAES-256-GCM", 24, XAES),
        Suite(3, "AES-256-GCM", 12, _aes(32)),
        Suite(4, "AES-128-GCM", 12, _aes(16)),
        Suite(5, "ChaCha20-Poly1305", 12, lambda key: _Library(ChaCha20Poly1305(key))),
        Suite(6, "XChaCha20-Poly1305", 24, _XChaCha),
    )
}


def suite_of(algorithm: str) -> Suite:
    """The row of an algorithm. ``algorithm_forbidden``."""
    for s in SUITES.values():
        if s.algorithm == algorithm:
            return s
    raise RotorError("algorithm_forbidden", algorithm)
