"""The front door of a registry for tests: `/v2` asked by a user who has a namespace, and blobs put behind it."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from endpoints.services import Services
from endpoints.verbs import EXTENSION
from test.people import PASSWORD, SECRET, People
from test.place import Place
from util.digest import Digest


@dataclass
class Door:
    """A registry in `place`, whose user `acme` is asking. Their repository is `acme/app`, where none is said."""

    place: Place
    name: str = "acme/app"
    users: tuple[str, ...] = ("acme",)
    public: Mapping[str, bool] = field(default_factory=lambda: {"acme/app": True})

    def __post_init__(self) -> None:
        self.place.services()
        people = People(self.place.engine)
        for user in self.users:
            people.user(user)
        for name, public in self.public.items():
            people.repository(name, public=public)

    @cached_property
    def app(self) -> Flask:
        return self.place.app()

    @property
    def services(self) -> Services:
        services: Services = self.app.extensions[EXTENSION]
        return services

    def ask(self, method: str, path: str, *, who: str | None = "acme", **more: Any) -> TestResponse:
        """Ask `/v2/` for `path`; of the repository, where it begins with no name but `manifests/…` or the like."""
        url = f"/v2/{path}" if path.startswith(("_", "acme/")) else f"/v2/{self.name}/{path}"
        headers = {**login(who), **more.pop("headers", {})}
        return self.app.test_client().open(url, method=method, headers=headers, **more)

    def blob(self, *contents: bytes, name: str | None = None, algorithm: str = "sha256") -> None:
        """Put blobs into a repository, as an upload leaves them."""
        services = self.services
        number = services.registry.repository(*(name or self.name).split("/", 1)).id
        for content in contents:
            digest = Digest.of(content, algorithm)

            def put(digest: Digest = digest, content: bytes = content) -> None:
                with services.storage.create(f"{digest.algorithm}/{digest.hex[:2]}/{digest.hex}") as writer:
                    writer.write(content)
                    writer.commit()

            services.pushed_blobs.keep(number, digest, len(content), put)

    def push(self, content: bytes, reference: str, *, media_type: str | None = None, **more: Any) -> TestResponse:
        """Push a manifest under `reference`, without a Content-Type where none is said."""
        headers = {**({"Content-Type": media_type} if media_type else {}), **more.pop("headers", {})}
        return self.ask("PUT", f"manifests/{reference}", data=content, headers=headers, **more)

    def there(self, reference: str) -> bool:
        answer = self.ask("GET", f"manifests/{reference}")
        assert answer.status_code in (200, 404)
        return answer.status_code == 200


def login(who: str | None) -> dict[str, str]:
    """Return the headers of `who`; none of nobody."""
    if who is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{who}:{PASSWORD}".encode()).decode()}


def codes(answer: TestResponse) -> list[str]:
    """Return the codes of an error in the specification's form."""
    assert answer.content_type == "application/json"
    errors = answer.get_json()["errors"]
    assert all(each.keys() <= {"code", "message", "detail"} and each["message"] for each in errors)
    return [each["code"] for each in errors]


SETTINGS = {"DATABASE_SECRET_KEY": SECRET}
