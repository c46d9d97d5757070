"""How programs log in to a Quay beside users, robots and app-specific tokens: every other kind of credentials it has.

- `$oauthtoken` and an OAuth token: its user, as far as the token's scopes reach;
- `$token` and an access token: no user, but one role in one repository;
- a robot and a short-lived token that was signed for it, as robots of a federation get one;
- a user and their password encrypted under SECRET_KEY, which may be demanded.

Everything else is left to the accounts that this stands before. quay/quay, auth/credentials.py.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

from sqlalchemy import Select, select

from data.accounts import (
    APP_TOKEN_USER,
    Account,
    AccountDisabled,
    Accounts,
    CredentialsRefused,
    Delegate,
    Role,
    Scopes,
)
from data.database import Engine
from data.encryptedpasswords import EncryptedPasswords
from data.passwords import Passwords
from data.registry import reached, storable
from data.secretbox import Secrets, Undecryptable
from data.tables import MARKED_FOR_DELETION, AccessToken, OAuthAccessToken, Repository, User, now_utc
from data.tables import Role as RoleRow
from util.names import robot_owner

OAUTH_TOKEN_USER = "$oauthtoken"  # noqa: S105 no secret
"""The name that somebody logs in with whose password is an OAuth token."""

ACCESS_TOKEN_USER = "$token"  # noqa: S105 no secret
"""The name that somebody logs in with whose password is an access token."""

_OAUTH_NAME = 20  # characters of an OAuth token that are its name; the others are secret
_ACCESS_NAME = 32
_MAX_TOKEN = 1024  # characters
_OAUTH_TOKEN = re.compile(r"[A-Za-z0-9]{40,255}")
_SIGNED = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_MAX_SIGNED = 16 << 10  # characters


class RobotTokens(Protocol):
    """Short-lived tokens that somebody signs for robots."""

    def is_robots(self, token: str, robot: str) -> bool:
        """Tell whether `token` is valid and was signed for `robot`."""


def may_be_oauth_token(text: str) -> bool:
    """Tell whether `text` has the form of an OAuth token of Quay's."""
    return _OAUTH_TOKEN.fullmatch(text) is not None


class ProgramLogins:
    """Accounts, with every way in that Quay has for programs."""

    def __init__(
        self,
        accounts: Accounts,
        engine: Engine,
        *,
        secrets: Secrets,
        robot_tokens: Sequence[RobotTokens] = (),
        encrypted_passwords: EncryptedPasswords | None = None,
        require_encrypted: bool = False,
        passwords: Passwords | None = None,
    ) -> None:
        """With `require_encrypted` no password of a user is right that is not encrypted."""
        self._accounts, self._engine, self._secrets = accounts, engine, secrets
        self._robot_tokens = robot_tokens
        self._encrypted_passwords, self._require_encrypted = encrypted_passwords, require_encrypted
        self._passwords = Passwords() if passwords is None else passwords

    # --- Who somebody is ----------------------------------------------------------------------------------------------

    def authenticate(self, username: str, password: str) -> Account:
        if username == OAUTH_TOKEN_USER:
            return self._by_oauth_token(password)
        if username == ACCESS_TOKEN_USER:
            return self._by_access_token(password)
        if username == APP_TOKEN_USER:
            return self._accounts.authenticate(username, password)
        if robot_owner(username) is None:
            return self._accounts.authenticate(username, self._plain(password))
        if len(password) <= _MAX_SIGNED and _SIGNED.fullmatch(password):
            return self._by_signed_token(username, password)
        return self._accounts.authenticate(username, password)

    def _plain(self, password: str) -> str:
        plain = None if self._encrypted_passwords is None else self._encrypted_passwords.decrypt(password)
        if plain is None and self._require_encrypted:
            raise CredentialsRefused(
                "passwords are taken encrypted only: generate an encrypted password in Quay's user settings, or use an"
                " app-specific token or a robot"
            )
        return password if plain is None else plain

    def _by_signed_token(self, robot: str, token: str) -> Account:
        if not (storable(robot) and any(tokens.is_robots(token, robot) for tokens in self._robot_tokens)):
            raise CredentialsRefused("the token of the robot is not valid: it has run out, or was not signed for it")
        account = self._accounts.find(robot)
        if account is None or not account.robot:
            raise AccountDisabled(f"the robot {robot} is disabled, or its owner is")
        return account

    def _by_oauth_token(self, token: str) -> Account:
        name, secret = token[:_OAUTH_NAME], token[_OAUTH_NAME:]
        query = cast(
            "Select[Any]",
            select(
                User.username,
                User.enabled,
                OAuthAccessToken.token_code,
                OAuthAccessToken.scope,
                OAuthAccessToken.expires_at,
            )
            .join(User, User.id == OAuthAccessToken.authorized_user_id)
            .where(OAuthAccessToken.token_name == name),
        )
        row = self._row(query, name, secret)
        if not self._passwords.match(OAUTH_TOKEN_USER, secret, None if row is None else row.token_code):
            raise CredentialsRefused("the OAuth token is none, or was revoked")
        if row.expires_at <= now_utc():
            raise CredentialsRefused("the OAuth token has expired")
        account = self._accounts.find(row.username) if row.enabled else None
        if account is None:
            raise AccountDisabled("whoever gave the OAuth token is disabled")
        return limited(account, Scopes.parse(row.scope))

    def _by_access_token(self, token: str) -> Account:
        name, secret = token[:_ACCESS_NAME], token[_ACCESS_NAME:]
        row = self._row(_delegates(AccessToken.token_code).where(AccessToken.token_name == name), name, secret)
        box = self._secrets()
        try:
            kept = None if row is None or box is None else box.decrypt(row.token_code)
        except Undecryptable:
            kept = None
        if kept is None or not hmac.compare_digest(secret.encode(errors="surrogatepass"), kept.encode()):
            raise CredentialsRefused("the access token is none")
        return _delegate(row)

    def _row(self, query: Select[Any], name: str, secret: str) -> Any:
        if not secret or len(secret) > _MAX_TOKEN or not storable(name):
            return None
        with reached(self._engine) as connection:
            return connection.execute(query).one_or_none()

    def find(self, name: str) -> Account | None:
        if not name.startswith(f"{ACCESS_TOKEN_USER}-"):
            return self._accounts.find(name)
        number = name.removeprefix(f"{ACCESS_TOKEN_USER}-")
        if not (number.isascii() and number.isdecimal() and len(number) < 19):
            return None
        with reached(self._engine) as connection:
            row = connection.execute(_delegates().where(AccessToken.id == int(number))).one_or_none()
        return None if row is None else _delegate(row)

    # --- What they may do ---------------------------------------------------------------------------------------------

    def role(self, account: Account, namespace: str, repository: str) -> Role | None:
        delegate = account.delegate
        if delegate is not None:
            return delegate.role if (namespace, repository) == (delegate.namespace, delegate.repository) else None
        role = self._accounts.role(account, namespace, repository)
        if role is None or account.scopes is None:
            return role
        most = account.scopes.role
        return None if most is None else min(role, most)

    def may_create(self, account: Account, namespace: str) -> bool:
        if account.delegate is not None or (account.scopes is not None and not account.scopes.creates):
            return False
        return self._accounts.may_create(account, namespace)


def limited(account: Account, scopes: Scopes) -> Account:
    """Return `account` as one that may do no more than `scopes` allow."""
    return replace(account, scopes=scopes, superuser=account.superuser and scopes.superuser)


def _delegates(*more: Any) -> Select[Any]:
    return (
        select(
            AccessToken.id,
            User.username.label("namespace"),
            Repository.name.label("repository"),
            RoleRow.name.label("role"),
            *more,
        )
        .select_from(AccessToken)
        .join(Repository, Repository.id == AccessToken.repository_id)
        .join(User, User.id == Repository.namespace_user_id)
        .join(RoleRow, RoleRow.id == AccessToken.role_id)
        .where(Repository.state != MARKED_FOR_DELETION, User.enabled.is_(True))
    )


def _delegate(row: Any) -> Account:
    delegate = Delegate(row.namespace, row.repository, Role.parse(row.role))
    return Account(-row.id, f"{ACCESS_TOKEN_USER}-{row.id}", robot=True, superuser=False, delegate=delegate)
