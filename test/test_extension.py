"""The extension on a host that is not ours: its own engine, storage, permission check, prefix and errors."""

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from flask import Flask, abort, g, request

from endpoints.access import Permission, Unauthenticated
from endpoints.extension import RegistryVerbs
from endpoints.registrygarbage import garbage_of
from endpoints.settings import InvalidSetting
from endpoints.verbs import EXTENSION
from test.images import Image, Layer
from test.layers import file
from test.place import Place

IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    place.push("acme/app:1.0", IMAGE)
    place.push("acme/secret:1.0", IMAGE, private=True)
    return place


def test_a_bare_host_with_its_own_engine_storage_and_permission_check(place: Place, tmp_path: Path) -> None:
    """The host's user comes from its own header; the settings name a place that would not work."""
    host = Flask("host")
    host.config["DB_URI"] = "postgresql://nobody@127.0.0.1:1/nothing"
    host.config["VERBS_DATA_DIR"] = str(tmp_path / "unused")
    services = place.services()
    asked = []

    def permission(namespace: str, repository: str, /, *, public: bool) -> bool:
        asked.append((namespace, repository, public))
        return public or g.user == "owner"

    @host.before_request
    def authenticate() -> None:
        g.user = request.headers.get("X-User")

    @host.get("/own")
    def own() -> str:
        return "the host's own page"

    RegistryVerbs(host, engine=place.engine, storage=services.storage, permission=permission)
    client = host.test_client()
    assert client.get("/own").data == b"the host's own page"
    assert client.get("/c1/rootfs/acme/app/1.0").status_code == 200
    assert client.get("/c1/rootfs/acme/secret/1.0").status_code == 403
    assert client.get("/c1/rootfs/acme/secret/1.0", headers={"X-User": "owner"}).status_code == 200
    assert client.get("/c1/rootfs/acme/absent/1.0").status_code == 403
    assert client.get("/c1/rootfs/acme/absent/1.0", headers={"X-User": "owner"}).status_code == 404
    assert asked[:2] == [("acme", "app", True), ("acme", "secret", False)]
    assert [path.name for path in (tmp_path / "unused").iterdir()] == ["spool"]


def test_a_host_s_one_storage_is_taken_as_it_is(place: Place) -> None:
    host = Flask("host")
    RegistryVerbs(host, engine=place.engine, storage=place.services().storage.preferred)
    assert host.test_client().get("/c1/rootfs/acme/app/1.0").status_code == 200


def test_a_check_that_forgets_to_answer_allows_nothing(place: Place) -> None:
    host = Flask("host")
    host.config.update(place.configuration)
    RegistryVerbs(host, permission=cast("Permission", lambda *_, **__: None))
    assert host.test_client().get("/c1/rootfs/acme/app/1.0").status_code == 403


def test_a_check_may_ask_for_credentials(place: Place) -> None:
    host = Flask("host")
    host.config.update(place.configuration)

    def permission(namespace: str, repository: str, /, *, public: bool) -> bool:
        raise Unauthenticated("log in first")

    RegistryVerbs(host, permission=permission)
    answer = host.test_client().get("/c1/rootfs/acme/app/1.0")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_a_check_may_answer_for_itself(place: Place) -> None:
    host = Flask("host")
    host.config.update(place.configuration)

    def permission(namespace: str, repository: str, /, *, public: bool) -> bool:
        if namespace == "acme":
            abort(host.make_response(("the host's own words", 451)))
        return True

    RegistryVerbs(host, permission=permission)
    answer = host.test_client().get("/c1/rootfs/acme/app/1.0")
    assert (answer.status_code, answer.data) == (451, b"the host's own words")


def test_a_host_s_own_errors_stay_its_own(place: Place) -> None:
    host = Flask("host")
    host.config.update(place.configuration)
    RegistryVerbs(host)
    assert host.test_client().get("/nowhere").mimetype == "text/html"
    assert host.test_client().get("/c1/nowhere").mimetype == "application/json"


def test_the_prefix_is_the_host_s_to_choose(place: Place) -> None:
    host = Flask("host")
    host.config.update(place.configuration)
    RegistryVerbs().init_app(host, url_prefix="/registry/derived")
    client = host.test_client()
    assert client.get("/registry/derived/rootfs/acme/app/1.0").status_code == 200
    assert "/registry/derived/VERB/" in client.get("/registry/derived/x").get_json()["errors"][0]["message"]
    assert client.get("/c1/rootfs/acme/app/1.0").status_code == 404


def test_one_extension_serves_several_applications(place: Place, tmp_path: Path) -> None:
    verbs = RegistryVerbs()
    first, second = Flask("first"), Flask("second")
    first.config.update(place.configuration)
    second.config["VERBS_DATA_DIR"] = str(tmp_path / "another")
    verbs.init_app(first)
    verbs.init_app(second)
    statuses = [host.test_client().get("/c1/rootfs/acme/app/1.0").status_code for host in (first, second)]
    assert statuses == [200, 401]
    assert vars(verbs) == {}


def test_a_wrong_setting_is_told_when_the_extension_is_put_on() -> None:
    host = Flask("host")
    host.config["REGISTRY_STATE"] = "asleep"
    with pytest.raises(InvalidSetting, match="REGISTRY_STATE"):
        RegistryVerbs(host)


def test_importing_it_opens_nothing(tmp_path: Path) -> None:
    program = "import os, sys; sys.path.insert(0, sys.argv[1]); import endpoints.extension; print(os.listdir('.'))"
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program, root], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("more", "ours"), [({}, False), ({"VERBS_REGISTRY": "own"}, True)])
def test_a_host_s_database_is_only_read_unless_the_host_says_more(
    place: Place, more: dict[str, str], ours: bool
) -> None:
    host = Flask("host")
    host.config.update(place.configuration | more)
    RegistryVerbs(host, engine=place.engine, storage=place.services().storage)
    assert host.extensions[EXTENSION].settings.own_registry is ours
    assert (garbage_of(host.extensions[EXTENSION]) is not None) is ours
