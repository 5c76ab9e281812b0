"""Messages: encrypted fields and cache entries (spec/message.md)."""

import base64
import binascii
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag

from ._ciphers import SUITES, Suite, suite_of
from ._fields import field
from ._xaes import NONCE_SIZE, TAG_SIZE
from .errors import RotorError

SUITE = 1  # XAES-256-GCM
HEADER = 1 + 4 + NONCE_SIZE  # suite, handle, nonce
OVERHEAD = HEADER + TAG_SIZE  # 45 bytes a message
TEXT_PREFIX = "rk1."

Part = tuple[str, bytes]
"""A label and a value that a message is bound to and does not carry. Order counts."""


class MessageKey:
    """One version of a key for encrypting.

    Args:
        material: 32 bytes (16 of AES-128-GCM).
        handle: names the version in its namespace, 0 to 2**32 - 1.
        namespace_id: ID of the namespace.
        key_id: ID of the key, not its name.
        algorithm: the version's. ``algorithm_forbidden`` for one that is not in the table.
    """

    def __init__(self, material: bytes, handle: int, namespace_id: str, key_id: str, algorithm: str = "XAES-256-GCM") -> None:
        self._suite: Suite = suite_of(algorithm)
        self._aead = self._suite.aead(material)
        self._handle = handle.to_bytes(4, "big")
        self._prefix = b"".join(
            field(f) for f in (b"rotor/field/1", bytes([self._suite.number]), self._handle, namespace_id.encode(), key_id.encode())
        )

    def associated_data(self, parts: Sequence[Part] = ()) -> bytes:
        """What messages with these parts are bound to (spec/message.md, "Associated data")."""
        return self._prefix + b"".join(field(label.encode()) + field(value) for label, value in parts)

    def encrypt(self, plaintext: bytes, parts: Sequence[Part] = (), *, nonce: bytes | None = None) -> bytes:
        """The message, 45 bytes longer than the plaintext (33 with nonces of 12 bytes). Give a nonce to reproduce vectors only:
        a nonce that is used twice under one key reveals plaintexts and allows forgeries."""
        nonce = os.urandom(self._suite.nonce) if nonce is None else nonce
        return bytes([self._suite.number]) + self._handle + nonce + self._aead.seal(nonce, plaintext, self.associated_data(parts))

    def decrypt(self, message: bytes, parts: Sequence[Part] = ()) -> bytes:
        """The plaintext. Whatever is wrong, the error is ``decrypt_failed``."""
        front = 5 + self._suite.nonce
        if len(message) < front + TAG_SIZE or message[:5] != bytes([self._suite.number]) + self._handle:
            raise RotorError("decrypt_failed", "message")
        try:
            return self._aead.open(message[5:front], message[front:], self.associated_data(parts))
        except InvalidTag:
            raise RotorError("decrypt_failed", "message") from None


def message_handle(message: bytes) -> int:
    """The handle of the version that made a message. ``invalid`` for bytes that are no message."""
    suite = SUITES.get(message[0]) if message else None
    if suite is None or len(message) < 5 + suite.nonce + TAG_SIZE:
        raise RotorError("invalid", "message")
    return int.from_bytes(message[1:5], "big")


def encode_text(message: bytes) -> str:
    """The text form: ``rk1.`` and base64url without padding (RFC 4648, 5)."""
    return TEXT_PREFIX + base64.urlsafe_b64encode(message).rstrip(b"=").decode()


def decode_text(text: str) -> bytes:
    """The inverse of encode_text, strictly: one message has one text. ``invalid``."""
    message = unbase64url(text[len(TEXT_PREFIX) :]) if text.startswith(TEXT_PREFIX) else None
    if message is None:
        raise RotorError("invalid", "message")
    return message


def unbase64url(text: str) -> bytes | None:
    """Base64url without padding, canonical; None for anything else."""
    try:
        out = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return out if base64.urlsafe_b64encode(out).rstrip(b"=").decode() == text else None
