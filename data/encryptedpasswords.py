"""Passwords that Quay has encrypted for its users, so that they need not lie in the clear in a client's configuration.

Quay shows a user their own password encrypted under SECRET_KEY, to be used with `docker login`; whoever finds it on a
disk can use it in a registry and nowhere else. AES-256 in CBC mode, the initialization vector first, of a JSON document
`{"password": …}`: quay/quay, data/users/__init__.py and util/security/aes.py.
"""

import base64
import binascii
import json
import os
from collections.abc import Callable

from data.secretbox import UnusableSecret, key_of

_BLOCK = 16  # bytes
_MAX = 4096  # characters; a password of 1,000 letters has less


class EncryptedPasswords:
    """Encrypts and decrypts passwords under the key that `secret` returns; None where there is none."""

    def __init__(self, secret: Callable[[], str | None]) -> None:
        self._secret = secret

    def encrypt(self, password: str) -> str | None:
        """Return `password` encrypted, another way each time; None where there is no key."""
        from cryptography.hazmat.primitives import padding
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        key = self._key()
        if key is None:
            return None
        vector, padder = os.urandom(_BLOCK), padding.PKCS7(8 * _BLOCK).padder()
        content = padder.update(json.dumps({"password": password}).encode()) + padder.finalize()
        encryptor = Cipher(algorithms.AES(key), modes.CBC(vector)).encryptor()
        return base64.b64encode(vector + encryptor.update(content) + encryptor.finalize()).decode()

    def decrypt(self, text: str) -> str | None:
        """Return the password that `text` is the encrypted form of; None where it is no such form."""
        from cryptography.hazmat.primitives import padding
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        if len(text) > _MAX:
            return None
        try:
            sealed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return None
        key = self._key() if len(sealed) >= 2 * _BLOCK and len(sealed) % _BLOCK == 0 else None
        if key is None:
            return None
        decryptor = Cipher(algorithms.AES(key), modes.CBC(sealed[:_BLOCK])).decryptor()
        unpadder = padding.PKCS7(8 * _BLOCK).unpadder()
        try:
            content = unpadder.update(decryptor.update(sealed[_BLOCK:]) + decryptor.finalize()) + unpadder.finalize()
            document = json.loads(content.decode())
        except (ValueError, RecursionError):
            return None
        password = document.get("password") if isinstance(document, dict) else None
        return password if isinstance(password, str) else None

    def _key(self) -> bytes | None:
        secret = self._secret()
        try:
            return None if secret is None else key_of(secret, "SECRET_KEY")
        except UnusableSecret:  # Quay could not encrypt under it either
            return None
