"""C2SP FLOE (https://c2sp.org/FLOE): AES-GCM-256, HKDF-EXPAND-SHA-384, an IV of 32 bytes, segments of 16,416 bytes (spec/file.md)."""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from .errors import RotorError

IV = 32
OVERHEAD = 4 + 12 + 16  # length, nonce, tag
SEGMENT = (16 << 10) + OVERHEAD
PARAMETERS = bytes([0, 0]) + SEGMENT.to_bytes(4, "big") + IV.to_bytes(4, "big")
FRONT = len(PARAMETERS) + IV + 32
_MORE = 0xFFFFFFFF
_SPAN = 20  # 2^20 segments are under one key


class Floe:
    """One FLOE ciphertext. Not safe for concurrent use.

    Attributes:
        front: parameters, IV and header tag, 74 bytes.
    """

    def __init__(self, dek: bytes, iv: bytes, context: bytes) -> None:
        self._header, self._context = PARAMETERS + iv, context
        self.front = self._header + self._kdf(dek, b"HEADER_TAG:", 32)
        self._key = self._kdf(dek, b"MESSAGE_KEY:", 48)
        self._span, self._aead = -1, AESGCM(bytes(32))

    @classmethod
    def opened(cls, dek: bytes, front: bytes, context: bytes) -> "Floe":
        """Of a front that was read. ``decrypt_failed``."""
        f = cls(dek, front[len(PARAMETERS) : len(PARAMETERS) + IV], context)
        if not hmac.compare_digest(f.front, front):
            raise RotorError("decrypt_failed", "file")
        return f

    def _kdf(self, key: bytes, purpose: bytes, n: int) -> bytes:
        return HKDFExpand(SHA384(), n, self._header + purpose + self._context).derive(key)

    def _of(self, n: int) -> AESGCM:
        if n >> _SPAN != self._span:
            self._span = n >> _SPAN
            self._aead = AESGCM(self._kdf(self._key, b"DEK:" + (self._span << _SPAN).to_bytes(8, "big"), 32))
        return self._aead

    def seal(self, n: int, plain: bytes, last: bool) -> bytes:
        """Segment n. Each nonce is fresh, so a segment may be sealed again."""
        nonce, size = os.urandom(12), len(plain) + OVERHEAD if last else _MORE
        return size.to_bytes(4, "big") + nonce + self._of(n).encrypt(nonce, plain, _data(n, last))

    def open(self, n: int, sealed: bytes, last: bool) -> bytes:
        """The plaintext of segment n. ``decrypt_failed``."""
        want = len(sealed) if last else _MORE
        fits = OVERHEAD <= len(sealed) < SEGMENT if last else len(sealed) == SEGMENT
        try:
            if not fits or int.from_bytes(sealed[:4], "big") != want:
                raise InvalidTag
            return self._of(n).decrypt(sealed[4:16], sealed[16:], _data(n, last))
        except InvalidTag:
            raise RotorError("decrypt_failed", f"chunk {n} of the file") from None


def _data(n: int, last: bool) -> bytes:
    return n.to_bytes(8, "big") + bytes([last])
