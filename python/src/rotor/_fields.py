"""Length-prefixed fields, the building block of every associated data (spec/message.md, "Fields")."""


def field(value: bytes) -> bytes:
    """Four bytes of length, big endian, and the value."""
    return len(value).to_bytes(4, "big") + value


class Reader:
    """Reads fields strictly. ``ValueError`` for bytes that end too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise ValueError("field is cut off")
        self._at += n
        return self._data[self._at - n : self._at]

    def number(self, size: int = 4) -> int:
        return int.from_bytes(self.take(size), "big")

    def field(self) -> bytes:
        return self.take(self.number())

    def end(self) -> None:
        if self._at != len(self._data):
            raise ValueError("bytes are left over")
