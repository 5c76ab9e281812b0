"""Acknowledgement proofs of the delivery protocol (spec/delivery.md)."""

import hashlib
import hmac
from collections.abc import Iterable

from ._fields import field


def _sequence(domain: bytes, *fields: bytes) -> bytes:
    return field(domain) + b"".join(field(f) for f in fields)


def hello_input(cluster: str, instance: str, incarnation: bytes, session: bytes, public: bytes) -> bytes:
    """What a process signs with its certificate's key (ECDSA P-256, SHA-256) to bind its delivery key to itself."""
    return _sequence(b"rotor/hello/1", cluster.encode(), instance.encode(), incarnation, session, public)


def server_input(domain: str, message: bytes) -> bytes:
    """What the server's Ed25519 key signs for a message in a domain, such as ``rotor/snapshot/2``."""
    return b"rotor-signature-v1\x00" + field(domain.encode()) + message


def info(cluster: str, instance: str, incarnation: bytes, session: bytes) -> bytes:
    """HPKE's info of the sealings of a stream (RFC 9180, 5.1)."""
    return _sequence(b"rotor/delivery/2", cluster.encode(), instance.encode(), incarnation, session)


def label(key_id: str, epoch: tuple[int, int]) -> bytes:
    """Associated data of a sealing. The epoch is (incarnation of the cluster, counter)."""
    return _sequence(b"rotor/delivery/2", key_id.encode(), _epoch(epoch))


def proof(
    cluster: str,
    instance: str,
    incarnation: bytes,
    session: bytes,
    key_id: str,
    epoch: tuple[int, int],
    material: Iterable[tuple[int, bytes]],
) -> bytes:
    """The acknowledgement of an epoch, 32 bytes.

    Args:
        material: version number and bytes of each live version, in the order of the snapshot; empty for keys whose material is not
            delivered.
    """
    h = hmac.new(b"rotor/ack/1", digestmod=hashlib.sha256)
    for number, secret in material:
        h.update(hmac.digest(secret, _sequence(b"rotor/ack-version/1", number.to_bytes(4, "big")), "sha256"))
    h.update(_sequence(b"rotor/ack/1", cluster.encode(), instance.encode(), incarnation, session, key_id.encode(), _epoch(epoch)))
    return h.digest()


def _epoch(epoch: tuple[int, int]) -> bytes:
    return epoch[0].to_bytes(4, "big") + epoch[1].to_bytes(8, "big")
