"""Temporary credentials for a bucket: a role of AWS, assumed by a user, by a web identity or by whoever we are anyway.

Invariants: nothing is asked before the first request to the bucket. The credentials are renewed some minutes before
they expire, by one thread while the others go on with the old ones; a renewal that fails fails a request only where the
old ones are of no use any more. A token's file is read each time, because what writes it (Kubernetes) renews it.

Where STS is, is AWS's own matter: the region's, or AWS_ENDPOINT_URL_STS and what else the library reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import botocore.session
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    AssumeRoleWithWebIdentityCredentialFetcher,
    Credentials,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError
from botocore.utils import FileWebIdentityTokenLoader

_METHOD = "sts-assume-role"
_GLOBAL = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role and who assumes it: the user with these keys, who `token_file` proves, or whom the library finds."""

    arn: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    token_file: str | None = None
    region: str | None = None
    session_name: str = "quay"


def _now() -> datetime:
    return datetime.now(UTC)


def role_credentials(role: Role, *, clock: Callable[[], datetime] = _now) -> Credentials:
    """Return the credentials of whoever has assumed `role`. What uses them raises the library's errors."""
    return DeferredRefreshableCredentials(partial(_assume, role), _METHOD, clock)


def _assume(role: Role) -> Any:
    session = botocore.session.get_session()
    region = role.region or session.get_config_variable("region") or _GLOBAL
    client = partial(session.create_client, region_name=region)
    extra = {"RoleSessionName": role.session_name}
    if role.token_file is not None:
        loader = FileWebIdentityTokenLoader(role.token_file)
        by_token = AssumeRoleWithWebIdentityCredentialFetcher(client, loader, role.arn, extra_args=extra)
        try:
            return by_token.fetch_credentials()
        except OSError as error:
            said = f"{role.token_file}: {error.strerror}"
            raise CredentialRetrievalError(provider=_METHOD, error_msg=said) from error
    if role.access_key is not None and role.secret_key is not None:
        who: Any = Credentials(role.access_key, role.secret_key)
    else:
        who = session.get_credentials()
    if who is None:
        raise NoCredentialsError
    return AssumeRoleCredentialFetcher(client, who, role.arn, extra_args=extra).fetch_credentials()
