"""Tokens that Quay signed for robots, read by the public keys of Quay's own instances.

A robot of a federation brings a token of its identity provider to Quay and gets a short-lived token of Quay's for it,
which is then its password. Whether one is right is told by the keys in Quay's table `servicekey`, so that no secret of
Quay's is needed. quay/quay, data/model/user.py (verify_robot_jwt_token) and util/security/registry_jwt.py.
"""

import json
import logging
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from data.database import Engine
from data.registry import reached, storable
from data.tables import ServiceKey, now_utc

if TYPE_CHECKING:
    import jwt

log = logging.getLogger(__name__)

_ALGORITHM = "RS256"
_LEEWAY = 30  # seconds that two clocks may differ by
_MAX_KID = 255


class ServiceKeys:
    """The keys with which the instances of a Quay sign."""

    def __init__(self, engine: Engine, *, host: str, service: str = "quay", max_seconds: int = 3660) -> None:
        """`host` is SERVER_HOSTNAME, `service` INSTANCE_SERVICE_KEY_SERVICE.

        Tokens that were signed for more than `max_seconds` are refused: REGISTRY_JWT_AUTH_MAX_FRESH_S.
        """
        self._engine, self._host, self._service, self._max_seconds = engine, host, service, max_seconds

    def is_robots(self, token: str, robot: str) -> bool:
        """Tell whether `token` was signed by an instance of Quay for `robot`. Raises RegistryUnavailable."""
        import jwt

        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.InvalidTokenError:
            return False
        key = self._key(kid) if isinstance(kid, str) and len(kid) <= _MAX_KID and storable(kid) else None
        if key is None:
            return False
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=self._host,
                issuer=self._service,
                leeway=_LEEWAY,
                options={"require": ["iss", "aud", "sub", "iat", "nbf", "exp"], "strict_aud": True},
            )
            signed_for = int(claims["exp"]) - int(claims["iat"])
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError) as error:
            log.info("a token for the robot %s is refused: %s", robot, error)
            return False
        # A token of Quay's /v2/auth is signed alike, and says in `access` what little it is for: it is no password.
        return claims["sub"] == robot and signed_for <= self._max_seconds and claims.get("access") == {}

    def _key(self, kid: str) -> "jwt.PyJWK | None":
        import jwt

        query = select(ServiceKey.jwk).where(
            ServiceKey.kid == kid,
            ServiceKey.service == self._service,
            ServiceKey.approval_id.is_not(None),
            or_(ServiceKey.expiration_date.is_(None), ServiceKey.expiration_date > now_utc()),
        )
        with reached(self._engine) as connection:
            text = connection.scalar(query)
        if text is None:
            return None
        try:
            return jwt.PyJWK(json.loads(text), _ALGORITHM)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.warning("Quay's service key %s cannot be used: %s", kid, error)
            return None
