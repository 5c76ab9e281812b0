"""Rotor's formats, independent of rotor's Go code: files, messages, access tokens, acknowledgement proofs and the audit log.

The package reads and writes with key material that it is given; it fetches no key and speaks to no server. The normative text is in
spec/ of the project, and the vectors in spec/vectors are read by the tests of this package and of the Go code.
"""

from . import audit, delivery, file, message, token
from .errors import RotorError

__all__ = ["RotorError", "audit", "delivery", "file", "message", "token"]
