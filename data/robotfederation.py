"""Robots of a federation: a robot is whoever an OpenID provider says it is, as an administrator has told the registry.

A robot's row in `federatedlogin` lists the issuers and subjects that it trusts. A token of such an issuer is verified
by the keys that the issuer publishes, and is then as good as the robot's own.

Invariants:
- Only issuers that the robot's row names are asked, over TLS alone, and no redirect is followed.
- What an issuer answers is bounded, in bytes and in time; its keys are kept for a while, and of few issuers.
- An issuer that does not answer is no refusal: `IssuerUnavailable`.

quay/quay, util/security/federated_robot_auth.py; OpenID Connect Discovery 1.0, section 4; RFC 7517, RFC 7519.
"""

import json
import logging
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import select

from data.accounts import Account, AccountDisabled, Accounts, CredentialsRefused
from data.database import Engine
from data.registry import reached, storable
from data.tables import FederatedLogin, LoginService, User
from data.webrequest import HttpFailed, get
from util.problem import Malformed, Problem

log = logging.getLogger(__name__)

ROBOTS = "quayrobot"
"""The login service whose rows belong to robots."""

CONFIGURATION = "federation_config"
"""The key in a row's JSON under which the trusted issuers and subjects stand."""

_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384"]
_LEEWAY = 30  # seconds that two clocks may differ by
_SECONDS = 5.0  # that one answer of an issuer may take
_MAX_ANSWER = 256 << 10  # bytes; a set of keys has some thousand
_MAX_KEYS = 100
_MAX_TOKEN = 16 << 10  # characters
_MAX_URL = 2048
_KEPT_SECONDS = 300.0
_AGAIN_SECONDS = 10.0  # before an issuer is asked anew about a key that it did not have
_MAX_ISSUERS = 64
_REFUSED = "the token is not valid for the robot"  # nor is it told whether there is one, and whom it trusts
_PRIVATE = frozenset(("d", "k"))  # members of a key that is nobody's to publish


class IssuerUnavailable(Problem):
    """An issuer of tokens whose keys cannot be had now."""

    code = "ISSUER_UNAVAILABLE"


class InvalidFederation(Malformed):
    """An issuer, a subject or an audience that no robot can trust."""

    code = "FEDERATION_INVALID"


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom a robot trusts: tokens of `issuer` about `subject`. Without `audiences` those for anybody will do."""

    issuer: str
    subject: str
    audiences: tuple[str, ...] = ()

    @classmethod
    def checked(cls, issuer: str, subject: str, audiences: tuple[str, ...] = ()) -> "Trusted":
        """Return it. Raises InvalidFederation unless the issuer is an https URL and the others are texts."""
        if not is_issuer(issuer):
            raise InvalidFederation(f"{issuer!r} is no issuer: the https URL of an OpenID provider, without a query")
        if not subject or not all(audiences):
            raise InvalidFederation("a subject and an audience are texts that are not empty")
        return cls(issuer, subject, audiences)

    @property
    def document(self) -> dict[str, Any]:
        """It as Quay keeps it."""
        kept: dict[str, Any] = {"issuer": self.issuer, "subject": self.subject}
        return {**kept, "audiences": list(self.audiences)} if self.audiences else kept


def is_issuer(text: str) -> bool:
    """Tell whether `text` may be the URL of an issuer."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text and len(text) <= _MAX_URL
    return usable and plain and not parts.query and not parts.fragment and parts.username is None


def trusted_in(text: str) -> list[Trusted]:
    """Return whom the JSON `text` of a row lists; what is no such list, or no entry of one, is left out."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    entries = document.get(CONFIGURATION) if isinstance(document, dict) else None
    found = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        issuer, subject, audiences = entry.get("issuer"), entry.get("subject"), entry.get("audiences") or []
        texts = [issuer, subject, *audiences] if isinstance(audiences, list) else [None]
        if all(isinstance(each, str) and each for each in texts):
            found.append(Trusted(str(issuer), str(subject), tuple(audiences)))
    return found


class RobotFederation:
    """Lets robots in by tokens of the issuers that they trust. Safe for several threads."""

    def __init__(
        self,
        engine: Engine,
        accounts: Accounts,
        context: Callable[[], ssl.SSLContext],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`context` says which servers are believed to be who they say; it is called when the first is asked."""
        self._engine, self._accounts = engine, accounts
        self._context, self._clock = context, clock
        self._keys: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def authenticate(self, robot: str, token: str) -> Account:
        """Return the robot that a `token` of an issuer it trusts is about.

        Raises CredentialsRefused, AccountDisabled, IssuerUnavailable, RegistryUnavailable.
        """
        import jwt

        trusted = self._trusted(robot)
        try:
            if len(token) > _MAX_TOKEN:
                raise jwt.InvalidTokenError("it is too long")
            header = jwt.get_unverified_header(token)
            said = jwt.decode(token, options={"verify_signature": False})
            issuer, kid, algorithm = said.get("iss"), header.get("kid"), header.get("alg")
            subjects = {each.subject for each in trusted if each.issuer == issuer}
            if not subjects or not isinstance(issuer, str):
                raise jwt.InvalidTokenError("the robot trusts no such issuer")
            if not isinstance(kid, str) or algorithm not in _ALGORITHMS:
                raise jwt.InvalidTokenError("it names no key, or an algorithm that is not taken")
            claims = jwt.decode(
                token,
                self._key(issuer, kid, algorithm),
                algorithms=[algorithm],
                issuer=issuer,
                leeway=_LEEWAY,
                options={"require": ["iat", "exp", "sub"], "verify_aud": False, "verify_nbf": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            log.info("a token for the robot %s is refused: %s", robot, error)
            raise CredentialsRefused(_REFUSED) from None
        said_for = claims.get("aud")
        audiences = {each for each in (said_for if isinstance(said_for, list) else [said_for]) if isinstance(each, str)}
        if not any(
            each.issuer == issuer
            and each.subject == claims["sub"]
            and (not each.audiences or not audiences.isdisjoint(each.audiences))
            for each in trusted
        ):
            log.info("a token for the robot %s is refused: it is about somebody else, or for somebody else", robot)
            raise CredentialsRefused(_REFUSED)
        account = self._accounts.find(robot)
        if account is None or not account.robot:
            raise AccountDisabled(f"the robot {robot} is disabled, or its owner is")
        return account

    def _trusted(self, robot: str) -> list[Trusted]:
        if not storable(robot):
            return []
        query = (
            select(FederatedLogin.metadata_json)
            .join(User, User.id == FederatedLogin.user_id)
            .join(LoginService, LoginService.id == FederatedLogin.service_id)
            .where(User.username == robot, User.robot.is_(True), LoginService.name == ROBOTS)
        )
        with reached(self._engine) as connection:
            text = connection.scalar(query)
        return [] if text is None else [each for each in trusted_in(text) if is_issuer(each.issuer)]

    # --- What issuers publish -----------------------------------------------------------------------------------------

    def _key(self, issuer: str, kid: str, algorithm: str) -> Any:
        import jwt

        found = self._known(issuer, kid)
        if found is None:
            raise jwt.InvalidTokenError("the issuer has no such key")
        return jwt.PyJWK(found, algorithm)

    def _known(self, issuer: str, kid: str) -> Any:
        with self._lock:
            fetched, keys = self._keys.get(issuer, (float("-inf"), {}))
            age = self._clock() - fetched
        if age > (_KEPT_SECONDS if kid in keys else _AGAIN_SECONDS):
            keys = self._published(issuer)  # by nobody's turn: one that hangs must not hold up the others
            with self._lock:
                self._keys.pop(issuer, None)
                self._keys[issuer] = (self._clock(), keys)
                while len(self._keys) > _MAX_ISSUERS:
                    self._keys.popitem(last=False)
        return keys.get(kid)

    def _published(self, issuer: str) -> dict[str, Any]:
        where = self._document(issuer, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        told, place = where.get("issuer"), where.get("jwks_uri")
        if not isinstance(told, str) or told.rstrip("/") != issuer.rstrip("/"):
            raise self._unavailable(issuer, "it says that it is another one")
        if not isinstance(place, str) or urlsplit(place).scheme != "https" or not place.isprintable():
            raise self._unavailable(issuer, "it names no https URL of its keys")
        keys = self._document(issuer, place).get("keys")
        if not isinstance(keys, list):
            raise self._unavailable(issuer, "it publishes no list of keys")
        return {
            key["kid"]: key
            for key in keys[:_MAX_KEYS]
            if isinstance(key, dict) and isinstance(key.get("kid"), str) and _PRIVATE.isdisjoint(key)
        }

    def _document(self, issuer: str, url: str) -> dict[str, Any]:
        reason = f"{url} answers with no JSON document"
        try:
            status, body = get(url, headers={}, seconds=_SECONDS, limit=_MAX_ANSWER, context=self._context())
            document = json.loads(body) if status == HTTPStatus.OK else None
        except HttpFailed as error:
            document, reason = None, str(error)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._unavailable(issuer, reason)
        return document

    def _unavailable(self, issuer: str, reason: str) -> IssuerUnavailable:
        # What answers and what does not is nothing for strangers: whoever has a robot may name any host as its issuer.
        log.warning("the issuer %s cannot be asked: %s", issuer, reason)
        return IssuerUnavailable(f"the issuer {issuer} cannot be asked now; the server's log says why")
