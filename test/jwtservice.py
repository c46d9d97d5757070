"""A service for tests that checks passwords and answers with signed tokens, as quay/quay has it in
data/users/externaljwt.py; and that lies, where a test says how.
"""

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ISSUER = "https://people.example.com"


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclass
class JwtService:
    """A service that runs. `lie` is given the request's handler instead of an honest answer, where it is set."""

    url: str
    key: rsa.RSAPrivateKey
    public_key: Path
    people: dict[str, tuple[str, str | None]]
    lie: Callable[["Handler"], None] | None = None
    asked: list[str] = field(default_factory=list)

    def token(self, subject: str = "alice", *, algorithm: str = "RS256", key: Any = None, **claims: Any) -> str:
        """Return a token for `subject`; of `claims`, None leaves one out."""
        now = int(time.time())
        values: Mapping[str, Any] = {
            "sub": subject, "iss": ISSUER, "aud": "quay.io/jwtauthn", "iat": now, "nbf": now, "exp": now + 60,
            "email": f"{subject}@example.com", **claims,
        }  # fmt: skip
        kept = {name: value for name, value in values.items() if value is not None}
        return jwt.encode(kept, self.key if key is None else key, algorithm=algorithm)

    @property
    def configuration(self) -> dict[str, Any]:
        """Return the keys of Quay's that lead here."""
        return {
            "AUTHENTICATION_TYPE": "JWT",
            "JWT_VERIFY_ENDPOINT": self.url,
            "JWT_AUTH_ISSUER": ISSUER,
            "VERBS_CONFIG_DIR": str(self.public_key.parent),
        }


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    service: JwtService

    def do_GET(self) -> None:
        login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        name, _, password = login.partition(":")
        self.service.asked.append(name)
        if self.service.lie is not None:
            self.service.lie(self)
            return
        for subject, (theirs, email) in self.service.people.items():
            if name in (subject, email) and password == theirs:
                self.answer_token(self.service.token(subject, email=email))
                return
        self.answer(403, b"Invalid username or password")

    def answer_token(self, token: str) -> None:
        self.answer(200, b'{"token": "' + token.encode() + b'"}')

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def jwt_service(folder: Path, people: Mapping[str, tuple[str, str | None]]) -> Iterator[JwtService]:
    """Serve `people`, by subject with password and e-mail address."""
    key = rsa.generate_private_key(65537, 2048)
    folder.mkdir(parents=True, exist_ok=True)
    public = folder / "jwt-authn.cert"
    public.write_bytes(_pem(key))
    handler = type("OfOneService", (Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        service = JwtService(f"http://127.0.0.1:{server.server_port}/verify", key, public, dict(people))
        handler.service = service  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
