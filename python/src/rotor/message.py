"""Messages: encrypted fields and cache entries (spec/message.md)."""

import base64
import binascii
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag

from ._fields import field
from ._xaes import NONCE_SIZE, TAG_SIZE, XAES
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
        material: 32 bytes.
        handle: names the version in its namespace, 0 to 2**32 - 1.
        namespace_id: ID of the namespace.
        key_id: ID of the key, not its name.
    """

    def __init__(self, material: bytes, handle: int, namespace_id: str, key_id: str) -> None:
        self._aead = XAES(material)
        self._handle = handle.to_bytes(4, "big")
        self._prefix = b"".join(
            field(f) for f in (b"rotor/field/1", bytes([SUITE]), self._handle, namespace_id.encode(), key_id.encode())
        )

    def associated_data(self, parts: Sequence[Part] = ()) -> bytes:
        """What messages with these parts are bound to (spec/message.md, "Associated data")."""
        return self._prefix + b"".join(field(label.encode()) + field(value) for label, value in parts)

    def encrypt(self, plaintext: bytes, parts: Sequence[Part] = (), *, nonce: bytes | None = None) -> bytes:
        """The message, 45 bytes longer than the plaintext. Give a nonce to reproduce vectors only: a nonce that is used twice
        under one key reveals plaintexts and allows forgeries."""
        nonce = os.urandom(NONCE_SIZE) if nonce is None else nonce
        return bytes([SUITE]) + self._handle + nonce + self._aead.seal(nonce, plaintext, self.associated_data(parts))

    def decrypt(self, message: bytes, parts: Sequence[Part] = ()) -> bytes:
        """The plaintext. Whatever is wrong, the error is ``decrypt_failed``."""
        if len(message) < OVERHEAD or message[:5] != bytes([SUITE]) + self._handle:
            raise RotorError("decrypt_failed", "message")
        try:
            return self._aead.open(message[5:HEADER], message[HEADER:], self.associated_data(parts))
        except InvalidTag:
            raise RotorError("decrypt_failed", "message") from None


def message_handle(message: bytes) -> int:
    """The handle of the version that made a message. ``invalid`` for bytes that are no message."""
    if len(message) < OVERHEAD or message[0] != SUITE:
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
