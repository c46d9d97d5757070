"""An identity service for tests that speaks OpenStack's Identity API, versions 2.0 and 3, and asks Swift's tempauth.

It knows logins by password alone and answers with tempauth's token and a catalog of one object store, as the API's
reference has them: https://docs.openstack.org/api-ref/identity/v3/ ("Password authentication with scoped
authorization") and https://docs.openstack.org/api-ref/identity/v2/ ("Authenticate").
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from swiftclient.client import get_auth_1_0
from swiftclient.exceptions import ClientException

from test.swiftserver import USER

PROJECT, REGION = "quay-project", "RegionOne"
_WHEN = {"issued": "2026-01-01T00:00:00.000000Z", "expires": "2999-01-01T00:00:00.000000Z"}


class Identity(ThreadingHTTPServer):
    """The service before the tempauth at `tempauth`. `bodies` are the requests' documents."""

    daemon_threads = True

    def __init__(self, tempauth: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tempauth = tempauth
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.bodies: list[Any] = []
        self.garbage: bytes | None = None
        """What every login is answered with instead."""


class _Handler(BaseHTTPRequestHandler):
    server: Identity

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(asked)
        if self.server.garbage is not None:
            self._answer(201, self.server.garbage, "x")
            return
        v3 = self.path.endswith("/v3/auth/tokens")
        if v3:
            user = asked["auth"]["identity"]["password"]["user"]
            name, password = user["name"], user["password"]
        else:
            login = asked["auth"]["passwordCredentials"]
            name, password = login["username"], login["password"]
        account, _, _ = USER.partition(":")  # which the client splits off for versions 2 and 3
        try:
            url, token = get_auth_1_0(self.server.tempauth, f"{account}:{name.rpartition(':')[2]}", password)
        except ClientException:
            self._answer(401, b'{"error": {"code": 401, "message": "no", "title": "Unauthorized"}}', "")
            return
        document = _token_3(name, url) if v3 else _token_2(name, url, token)
        self._answer(201 if v3 else 200, json.dumps(document).encode(), token)

    def _answer(self, status: int, content: bytes, token: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Subject-Token", token)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _token_3(name: str, url: str) -> dict[str, Any]:
    endpoint = {"id": "1", "interface": "public", "region": REGION, "region_id": REGION, "url": url}
    return {
        "token": {
            "methods": ["password"],
            "issued_at": _WHEN["issued"],
            "expires_at": _WHEN["expires"],
            "user": {"id": "1", "name": name, "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "2", "name": PROJECT, "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "3", "name": "member"}],
            "catalog": [{"id": "4", "type": "object-store", "name": "swift", "endpoints": [endpoint]}],
        }
    }


def _token_2(name: str, url: str, token: str) -> dict[str, Any]:
    endpoint = {"region": REGION, "publicURL": url, "internalURL": url, "adminURL": url}
    return {
        "access": {
            "token": {
                "id": token,
                "issued_at": _WHEN["issued"],
                "expires": _WHEN["expires"],
                "tenant": {"id": "2", "name": PROJECT, "enabled": True},
            },
            "user": {"id": "1", "name": name, "username": name, "roles": [{"name": "member"}], "roles_links": []},
            "serviceCatalog": [{"type": "object-store", "name": "swift", "endpoints": [endpoint]}],
        }
    }


@contextmanager
def identity(tempauth: str) -> Iterator[Identity]:
    """Give an identity service that runs."""
    with Identity(tempauth) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
