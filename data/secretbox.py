"""Secrets that are kept so that they can be told again: robots' tokens, as Quay keeps them.

The law: what comes out of a box is what went in, or nothing: AES-CCM tells a changed text, and one of another key.
quay/quay, data/encryption.py and util/security/secret.py.
"""

import base64
import binascii
import os
import uuid
from collections.abc import Callable

from util.problem import Problem

_VERSION = "v0"
_SEPARATOR = "$$"
_NONCE = 13  # bytes
_KEY = 32  # bytes


class UnusableSecret(Problem):
    """A secret key that no key follows from. The text never shows it."""

    code = "SECRET_UNUSABLE"


class Undecryptable(Problem):
    """A text that was not encrypted under this key, or was changed since."""

    code = "SECRET_UNDECRYPTABLE"


class SecretBox:
    """Encrypts and decrypts texts under the key that follows from `secret`, which is Quay's DATABASE_SECRET_KEY."""

    def __init__(self, secret: str) -> None:
        """Raise UnusableSecret where `secret` is not a number, a UUID or a text of Latin-1."""
        self._key = key_of(secret)

    def encrypt(self, text: str) -> str:
        """Return `text` encrypted, another way each time."""
        from cryptography.hazmat.primitives.ciphers.aead import AESCCM

        nonce = os.urandom(_NONCE)
        sealed = nonce + AESCCM(self._key).encrypt(nonce, text.encode(), None)
        return f"{_VERSION}{_SEPARATOR}{base64.b64encode(sealed).decode()}"

    def decrypt(self, text: str) -> str:
        """Return what `text` was before `encrypt`. Raises Undecryptable."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESCCM

        version, separator, content = text.partition(_SEPARATOR)
        if not separator or version != _VERSION:
            raise Undecryptable(f"an encrypted text begins with {_VERSION}{_SEPARATOR}")
        try:
            sealed = base64.b64decode(content, validate=True)
            return AESCCM(self._key).decrypt(sealed[:_NONCE], sealed[_NONCE:], None).decode()
        except (binascii.Error, ValueError, InvalidTag) as error:
            raise Undecryptable("a text was encrypted under another DATABASE_SECRET_KEY, or was changed") from error


def key_of(secret: str, setting: str = "DATABASE_SECRET_KEY") -> bytes:
    """Return 32 bytes as Quay derives them: of a number its digits in base 16, of a UUID its bytes, else the letters.

    Raises UnusableSecret naming the `setting`.
    """
    for read in (_number, _uuid, _letters):
        try:
            seed = read(secret)
        except ValueError:
            continue
        if seed:
            return (seed * _KEY)[:_KEY]
    raise UnusableSecret(f"{setting} is not usable; allowed: a number, a UUID, or letters of Latin-1")


def _number(secret: str) -> bytes:
    return bytes.fromhex(f"{int(secret):02x}")  # an odd number of digits is no number, as there


def _uuid(secret: str) -> bytes:
    return uuid.UUID(secret).bytes


def _letters(secret: str) -> bytes:
    return secret.encode("latin-1")


Secrets = Callable[[], SecretBox | None]
"""Gives the box of this registry, or None where its key is not known."""
