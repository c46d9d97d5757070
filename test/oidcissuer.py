"""An OpenID provider for tests, over TLS on loopback: publishes its keys, signs tokens, and lies where a test says."""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from test.slapd import Authority

KID = "key-1"
SUBJECT = "repo:acme/app:ref:refs/heads/main"


@dataclass
class Issuer:
    """A provider that runs. `lies` holds what is answered at a path instead of the truth; `asked` all paths so far."""

    url: str
    key: RSAPrivateKey
    authority: Authority
    asked: list[str] = field(default_factory=list)
    lies: dict[str, Callable[["Handler"], None]] = field(default_factory=dict)

    def token(
        self, subject: str = SUBJECT, *, key: Any = None, kid: str | None = KID, algorithm: str = "RS256", **claims: Any
    ) -> str:
        """Return a token about `subject`; of `claims`, None leaves one out."""
        now = int(time.time())
        values: Mapping[str, Any] = {"iss": self.url, "sub": subject, "iat": now, "exp": now + 300, **claims}
        kept = {name: value for name, value in values.items() if value is not None}
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(kept, self.key if key is None else key, algorithm=algorithm, headers=headers)

    def document(self, path: str) -> Any:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
            return {"keys": [{"kty": "oct"}, 5, {**public, "kid": KID, "use": "sig"}]}
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    issuer: Issuer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.issuer.asked.append(self.path)
        lie = self.issuer.lies.get(self.path)
        if lie is not None:
            lie(self)
            return
        document = self.issuer.document(self.path)
        self.answer(404 if document is None else 200, json.dumps(document).encode())

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def issuer(folder: Path) -> Iterator[Issuer]:
    """Give a provider whose certificate is signed by its `authority`."""
    authority = Authority(folder / "authority")
    certificate, private = authority.certificate("localhost", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    handler = type("IssuersHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    there = Issuer(f"https://localhost:{server.server_address[1]}", generate_private_key(65537, 2048), authority)
    handler.issuer = there  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
