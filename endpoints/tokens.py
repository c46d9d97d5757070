"""The tokens of `/v2/auth`: signed for a while, and for some repositories.

The law: a token says who logged in and what they asked for and might have; it never says more than that, and the
account is looked up whenever it is used. It is read only as it is signed here: one algorithm, our own name as its
issuer and its audience. The key is made of SECRET_KEY and is for nothing else. JWT, RFC 7519; the claim `access` is
Docker's.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.accounts import Account, Scopes
from endpoints.secretfiles import SecretFileUnusable, kept_secret
from endpoints.settings import Settings
from util.problem import Problem

log = logging.getLogger(__name__)

CATALOG = "catalog"
"""What `registry:catalog:*` asks for, as a token has it among its repositories: none is called so."""

_ALGORITHM = "HS256"
_LEEWAY = 30  # seconds that two clocks may differ by
_PURPOSE = b"registry-verbs: tokens of /v2/auth"
SECRET_FILE = "secret-key"  # noqa: S105 the name of a file
"""The file in the data folder that holds SECRET_KEY where the settings do not."""

_TYPES = {"repository", "registry"}


class TokenRefused(Problem):
    """A bearer token that is none of ours, or whose time is over."""

    code = "UNAUTHORIZED"


class TokensUnavailable(Problem):
    """There is no key to sign with."""

    code = "TOKENS_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Access:
    """What a token allows with one thing. `kind` is `repository`, or `registry` for the catalog."""

    kind: str
    name: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A signed token, and when it was issued, in seconds since 1970; it is valid for `seconds`."""

    text: str
    issued: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says: whose it is, None for nobody's, and what it is for, by name.

    `scopes` are those of the OAuth token that it was given for, None where it was another kind of login.
    """

    account: str | None
    account_id: int | None
    granted: Mapping[str, frozenset[str]]
    scopes: Scopes | None = None


class Tokens:
    """Signs tokens and reads them. Every method may raise TokensUnavailable."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells the time at which tokens are signed, in seconds since 1970."""
        self._settings, self._clock = settings, clock

    def sign(self, account: Account | None, access: Iterable[Access]) -> Token:
        """Return a token for `account`, or for nobody, that allows `access`."""
        import jwt

        settings = self._settings
        now, host = int(self._clock()), settings.server_hostname
        seconds = min(settings.token_seconds, settings.signed_seconds)
        claims: dict[str, Any] = {
            "iss": host,
            "aud": host,
            "sub": "" if account is None else account.name,
            "iat": now,
            "nbf": now,
            "exp": now + seconds,
            "jti": uuid.uuid4().hex,
            "access": [{"type": each.kind, "name": each.name, "actions": list(each.actions)} for each in access],
        }
        if account is not None:
            claims["uid"] = account.id  # another account may come to have the name
            if account.scopes is not None:
                claims["scope"] = " ".join(sorted(account.scopes.words))
        return Token(jwt.encode(claims, self._key, algorithm=_ALGORITHM), now, seconds)

    def read(self, text: str) -> Claims:
        """Return what the token `text` says. Raises TokenRefused."""
        import jwt

        host = self._settings.server_hostname
        try:
            claims = jwt.decode(
                text,
                self._key,
                algorithms=[_ALGORITHM],
                audience=host,
                issuer=host,
                leeway=_LEEWAY,
                options={"require": ["iss", "aud", "sub", "iat", "nbf", "exp", "jti", "access"]},
            )
        except jwt.InvalidTokenError as error:
            raise TokenRefused(f"the token is not valid: {error}") from None
        scopes = Scopes.parse(claims["scope"]) if "scope" in claims else None
        return Claims(claims["sub"] or None, claims.get("uid"), _granted(claims["access"]), scopes)

    @cached_property
    def _key(self) -> bytes:
        return signing_key(self._settings, _PURPOSE)


def signing_key(settings: Settings, purpose: bytes) -> bytes:
    """Return the 32 bytes that are made of SECRET_KEY for `purpose` alone. Raises TokensUnavailable."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    secret = settings.secret_key
    if secret is None:
        try:
            secret = kept_secret(settings.data_dir, SECRET_FILE)
        except SecretFileUnusable as error:
            log.error("tokens cannot be signed; set SECRET_KEY: %s", error)  # noqa: TRY400 a fact
            raise TokensUnavailable("tokens cannot be signed; the server's log says why") from None
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret.encode())


def _granted(access: Any) -> dict[str, frozenset[str]]:
    """Return what was signed, by name; ours are all of this form."""
    granted: dict[str, frozenset[str]] = {}
    for each in access:
        if each["type"] in _TYPES:
            granted[each["name"]] = granted.get(each["name"], frozenset()) | frozenset(each["actions"])
    return granted
