"""XAES-256-GCM (C2SP XAES-256-GCM.md), built from one AES block and AES-256-GCM."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32
NONCE_SIZE = 24
TAG_SIZE = 16


class XAES:
    """The AEAD under a key of 32 bytes. Nonces have 24 bytes and may be random."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise ValueError("XAES-256-GCM takes a key of 32 bytes")
        self._block = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305 - single blocks of a CMAC, as the specification says
        top = int.from_bytes(self._encrypt(bytes(16)), "big") << 1
        self._k1 = (top ^ (0x87 if top >> 128 else 0)) & ((1 << 128) - 1)

    def _encrypt(self, blocks: bytes) -> bytes:
        e = self._block.encryptor()
        return e.update(blocks) + e.finalize()

    def _derive(self, nonce: bytes) -> AESGCM:
        if len(nonce) != NONCE_SIZE:
            raise ValueError("XAES-256-GCM takes a nonce of 24 bytes")
        blocks = (int.from_bytes(bytes([0, i]) + b"X\x00" + nonce[:12], "big") ^ self._k1 for i in (1, 2))
        return AESGCM(self._encrypt(b"".join(b.to_bytes(16, "big") for b in blocks)))

    def seal(self, nonce: bytes, plaintext: bytes, data: bytes) -> bytes:
        """Ciphertext and tag, 16 bytes longer than the plaintext."""
        return self._derive(nonce).encrypt(nonce[12:], plaintext, data)

    def open(self, nonce: bytes, sealed: bytes, data: bytes) -> bytes:
        """The plaintext. ``InvalidTag`` when anything is wrong."""
        if len(sealed) < TAG_SIZE:
            raise InvalidTag
        return self._derive(nonce).decrypt(nonce[12:], sealed, data)
