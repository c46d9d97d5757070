"""The short-lived tokens that are signed here for robots of a federation, to be used as a robot's password.

JWT, RFC 7519, signed by a key that is made of SECRET_KEY and is for nothing else.
"""

import time
from collections.abc import Callable
from functools import cached_property

from endpoints.settings import Settings
from endpoints.tokens import TokensUnavailable, signing_key

SECONDS = 3600
"""How long one is good, as Quay's own are."""

_ALGORITHM = "HS256"
_LEEWAY = 30  # seconds that two clocks may differ by
_PURPOSE = b"registry-verbs: tokens of robots"


class SignedRobotTokens:
    """Signs and reads them."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` tells the time at which tokens are signed, in seconds since 1970."""
        self._settings, self._clock = settings, clock

    def sign(self, robot: str) -> str:
        """Return a token that is the password of `robot` for SECONDS. Raises TokensUnavailable."""
        import jwt

        now, host = int(self._clock()), self._settings.server_hostname
        claims = {"iss": host, "aud": host, "sub": robot, "iat": now, "nbf": now, "exp": now + SECONDS}
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

    def is_robots(self, token: str, robot: str) -> bool:
        """Tell whether `token` was signed here for `robot`, and not too long ago."""
        import jwt

        host = self._settings.server_hostname
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=host,
                issuer=host,
                leeway=_LEEWAY,
                options={"require": ["iss", "aud", "sub", "iat", "nbf", "exp"]},
            )
        except (jwt.InvalidTokenError, TokensUnavailable):
            return False
        return bool(claims["sub"] == robot)

    @cached_property
    def _key(self) -> bytes:
        return signing_key(self._settings, _PURPOSE)
