"""A service that checks passwords over HTTP, and answers with a signed token that says whose they are.

Invariants: nobody comes in but by a token that is signed by the configured RSA key, made for this service and for the
name that was asked for, and fresh. A service that answers with any other token does not work: that is no refusal.
Redirects are not followed, because they would take the password along. An answer ends within its time, and is bounded.
quay/quay, data/users/externaljwt.py; RFC 7519.
"""

import base64
import json
import logging
from collections.abc import Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from data.directories.directory import (
    DirectoryUnavailable,
    GroupsUnsupported,
    Identity,
    JwtSettings,
    Refusal,
    UnusableDirectory,
)
from data.directories.trust import client_context
from data.webrequest import HttpFailed, get

log = logging.getLogger(__name__)

MAX_ANSWER = 64 << 10
"""How many bytes an answer may have: a token takes some thousand."""

_AUDIENCE = "quay.io/jwtauthn"
_REFUSED = {400, 401, 403, 404}
_MAX_NAME = 255


class JwtDirectory:
    """A service as `settings` describe it. Safe for several threads, and across a fork."""

    service = "jwtauthn"

    def __init__(self, settings: JwtSettings) -> None:
        """Nothing is connected yet. Raises UnusableDirectory for a key or a certificate that is none."""
        self._settings = settings
        self._key = _public_key(settings.public_key)
        self._context = client_context(settings.trusted)

    def __repr__(self) -> str:
        return f"JwtDirectory({urlsplit(self._settings.verify_url).hostname})"

    def verify(self, username: str, password: str) -> Identity | Refusal:
        if not password:
            return Refusal("an empty password")
        try:
            login = f"{username}:{password}".encode()
        except UnicodeEncodeError:
            return Refusal("a name or a password that no service has")
        if not username or ":" in username or len(login) > 8192:  # a colon ends the name: RFC 7617
            return Refusal("a name or a password that no service has")
        status, body = self._asked(base64.b64encode(login).decode())
        if status in _REFUSED:
            return Refusal(f"the service answers with {status}")
        if status != HTTPStatus.OK:
            raise DirectoryUnavailable(f"{self._settings.verify_url} answers with status {status}")
        return self._identity(self._claims(body), username)

    def _asked(self, login: str) -> tuple[int, bytes]:
        settings = self._settings
        try:
            return get(
                settings.verify_url,
                headers={"Authorization": f"Basic {login}"},
                seconds=settings.timeout,
                limit=MAX_ANSWER,
                context=self._context,
            )
        except HttpFailed as error:
            raise DirectoryUnavailable(str(error)) from None

    def _claims(self, body: bytes) -> dict[str, Any]:
        settings = self._settings
        try:
            token = json.loads(body)["token"]
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=["RS256"],
                audience=_AUDIENCE,
                issuer=settings.issuer,
                options={"require": ["exp", "iat", "nbf", "sub", "aud", "iss"]},
            )
            lives = float(claims["exp"]) - float(claims["iat"])
        except jwt.InvalidTokenError as error:
            raise DirectoryUnavailable(f"the token of {settings.verify_url} is not valid: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise DirectoryUnavailable(f"{settings.verify_url} answers with no JSON that holds a token") from None
        if not lives <= settings.fresh_seconds:
            raise DirectoryUnavailable(
                f"the token of {settings.verify_url} is good for longer than {settings.fresh_seconds} seconds"
            )
        return claims

    def _identity(self, claims: dict[str, Any], username: str) -> Identity | Refusal:
        identifier, email = claims["sub"], claims.get("email")
        if not isinstance(identifier, str) or not 0 < len(identifier) <= _MAX_NAME or "\0" in identifier:
            raise DirectoryUnavailable(f"the token of {self._settings.verify_url} names nobody in `sub`")
        if not isinstance(email, str) or not 0 < len(email) <= _MAX_NAME or "\0" in email:
            email = None
        if username.casefold() not in (identifier.casefold(), (email or "").casefold()):
            raise DirectoryUnavailable(f"the token of {self._settings.verify_url} is not that of {username!r}")
        if self._settings.requires_email and email is None:
            log.warning("%s is refused: the token has no `email`, and FEATURE_MAILING needs one", identifier)
            return Refusal("the token has no e-mail address")
        return Identity(identifier, email)

    def is_superuser(self, identifier: str) -> bool:
        return False

    def is_readonly_superuser(self, identifier: str) -> bool:
        return False

    def is_restricted(self, identifier: str) -> bool:
        return False

    def members(self, group: str) -> Collection[Identity]:
        raise GroupsUnsupported("a JWT service is not asked for the members of groups")


def _public_key(path: str) -> RSAPublicKey:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_ANSWER)
        if b"BEGIN CERTIFICATE" in content:
            key = x509.load_pem_x509_certificate(content).public_key()
        else:
            key = load_pem_public_key(content)  # type: ignore[assignment]
    except OSError as error:
        raise UnusableDirectory(
            f"the public key {path} of AUTHENTICATION_TYPE JWT cannot be read: {error.strerror}"
        ) from None
    except ValueError:
        raise UnusableDirectory(f"{path} holds neither a public key nor a certificate, as PEM") from None
    if not isinstance(key, RSAPublicKey):
        raise UnusableDirectory(f"the public key in {path} is not one of RSA")
    return key
