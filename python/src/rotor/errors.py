"""The one error of the package."""


class RotorError(Exception):
    """A refusal with one of rotor's error codes (docs/reference/errors.md), for example ``decrypt_failed``.

    Attributes:
        code: the code, stable.
        resource: what was refused, for people. It never quotes secrets.
    """

    def __init__(self, code: str, resource: str) -> None:
        super().__init__(f"{code}: {resource}")
        self.code = code
        self.resource = resource
