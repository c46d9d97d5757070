"""App Container discovery: from the name alone to a verified image, by a client that knows only the specification."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from formats.appc import prefix_of
from test.discovery import Client, NotDiscovered
from test.gnupg import Key, make_key
from test.images import Image, Layer
from test.layers import file
from test.people import PASSWORD, SECRET, People
from test.place import Place
from test.server import served

IMAGE = Image([Layer([file(b"etc/motd", b"hello\n" * 5000)])], run={"Entrypoint": ["/bin/app"]})
ARM64 = Image([Layer([file(b"etc/arm")])], platform="linux/arm64", run={"Entrypoint": ["/bin/app"]})
HOST = "registry.example.com"
TEMPLATE = "registry.example.com http://registry.example.com/c1/aci/{name}/%s/{ext}/{os}/{arch}/"
AMD64 = {"os": "linux", "arch": "amd64"}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("key"), "registry")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Place:
    place = Place(tmp_path_factory.mktemp("place"), {**key.configuration, "DATABASE_SECRET_KEY": SECRET})
    place.push("acme/app:1.0", IMAGE, ARM64)
    place.push("acme/app:latest", IMAGE)
    place.push("acme/deeply/nested/app:1.0", IMAGE)
    place.push("acme/secret:1.0", IMAGE, private=True)
    people = People(place.engine)
    people.user("somebody")
    return place


@pytest.fixture(scope="module")
def connect(place: Place) -> Iterator[dict[str, str]]:
    with served(place) as running:
        yield {HOST: running.url.removeprefix("http://")}


# --- The walk ---------------------------------------------------------------------------------------------------------


def test_a_name_leads_to_a_verified_image(connect: dict[str, str], key: Key) -> None:
    found = Client(connect).fetch(f"{HOST}/acme/app", version="1.0", **AMD64)
    assert found.fingerprint == key.fingerprint
    assert found.manifest["app"]["exec"] == ["/bin/app"]
    assert f"http://{HOST}/c1/aci/{HOST}/acme/app/1.0/aci.asc/linux/amd64/" in found.asked
    again = Client(connect).fetch(f"{HOST}/acme/app", version="1.0", **AMD64)
    assert again.content == found.content


def test_the_labels_choose_the_platform(connect: dict[str, str]) -> None:
    found = Client(connect).fetch(f"{HOST}/acme/app", version="1.0", os="linux", arch="aarch64")
    assert {"name": "arch", "value": "aarch64"} in found.manifest["labels"]


def test_without_a_version_it_is_the_latest(connect: dict[str, str]) -> None:
    found = Client(connect).fetch(f"{HOST}/acme/app", **AMD64)
    assert {"name": "version", "value": "latest"} in found.manifest["labels"]


def test_a_nested_name_is_found_at_its_own_page(connect: dict[str, str]) -> None:
    found = Client(connect).fetch(f"{HOST}/acme/deeply/nested/app", version="1.0", **AMD64)
    assert found.asked[1] == f"http://{HOST}/acme/deeply/nested/app?ac-discovery=1"
    assert found.manifest["name"] == f"{HOST}/acme/deeply/nested/app"


def test_a_private_image_wants_a_login(place: Place, connect: dict[str, str], key: Key) -> None:
    name = f"{HOST}/acme/secret"
    with pytest.raises(NotDiscovered, match="answered with 401"):
        Client(connect).fetch(name, version="1.0", **AMD64)
    with pytest.raises(NotDiscovered, match="answered with 403"):
        Client(connect, login=("somebody", PASSWORD)).fetch(name, version="1.0", **AMD64)
    People(place.engine).user("friend")
    people = People(place.engine)
    people.organization("elsewhere", {"owners:admin": ("friend",)})
    place.push("elsewhere/secret:1.0", IMAGE, private=True)
    found = Client(connect, login=("friend", PASSWORD)).fetch(f"{HOST}/elsewhere/secret", version="1.0", **AMD64)
    assert found.fingerprint == key.fingerprint


def test_what_is_not_there_is_not_found(connect: dict[str, str]) -> None:
    for name, version in (("acme/app", "9.9"), ("acme/absent", "1.0"), ("absent", "1.0")):
        with pytest.raises(NotDiscovered):
            Client(connect).fetch(f"{HOST}/{name}", version=version, **AMD64)
    with pytest.raises(NotDiscovered, match="no page tells"):
        Client(connect, insecure=False).fetch(f"{HOST}/acme/app", version="1.0", **AMD64)


# --- The pages --------------------------------------------------------------------------------------------------------


class Metas(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "meta" and "content" in dict(attrs):
            self.found.append((dict(attrs)["name"], dict(attrs)["content"]))


@pytest.fixture(scope="module")
def client(place: Place) -> FlaskClient:
    return place.app().test_client()


@pytest.mark.parametrize("path", ["/", "/acme/app", "/acme/secret", "/acme/absent", "/acme/deeply/nested/app"])
@pytest.mark.parametrize("query", ["", "?ac-discovery=1"])
def test_pages_tell_where_images_and_keys_are(client: FlaskClient, path: str, query: str) -> None:
    answer = client.get(path + query)
    assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8")
    assert Metas(answer.text).found == [
        ("ac-discovery", TEMPLATE % "{version}"),
        ("ac-discovery", TEMPLATE % "latest"),
        ("ac-discovery-pubkeys", f"{HOST} http://{HOST}/aci-signing-key"),
    ]
    assert 'href="http://registry.example.com/c1/"' in answer.text


def test_a_page_tells_nothing_of_the_repository(client: FlaskClient) -> None:
    pages = {client.get(f"/acme/{name}").text.replace(name, "…") for name in ("app", "secret", "absent")}
    assert len(pages) == 1


@pytest.mark.parametrize(
    "path",
    ["/c1/nowhere", "/api/v1/nowhere", "/api/v1", "/v2/acme/app", "/metrics/x", "/health/x", "/aci-signing-key/x"],
)
def test_no_page_hides_what_is_there_or_is_not(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (401, 404)
    assert answer.content_type == "application/json"


@pytest.mark.parametrize("path", ["/favicon.ico", "/acme", "/acme/", "/A/b", "/acme/..", "/a/<b>", "/a/b//c"])
def test_what_is_no_name_has_no_page(client: FlaskClient, path: str) -> None:
    assert client.get(path, follow_redirects=True).status_code == 404


def test_names_are_no_html(client: FlaskClient) -> None:
    answer = client.get("/acme/%3Cscript%3E")
    assert (answer.status_code, answer.content_type) == (404, "application/json")


def test_a_port_is_in_the_urls_and_not_in_the_names(place: Place) -> None:
    configuration = {"SERVER_HOSTNAME": "Registry.example.com:8443", "PREFERRED_URL_SCHEME": "https"}
    found = Metas(Place(place.folder, configuration).app().test_client().get("/acme/app").text).found
    url = "https://Registry.example.com:8443/c1/aci/{name}/%s/{ext}/{os}/{arch}/"
    assert found == [("ac-discovery", f"{HOST} {url % version}") for version in ("{version}", "latest")]
    assert prefix_of("Registry.example.com:8443") == HOST


# --- The key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_the_public_one(client: FlaskClient, key: Key) -> None:
    answer = client.get("/aci-signing-key")
    assert (answer.status_code, answer.content_type) == (200, "application/pgp-keys")
    assert answer.data == key.public.read_bytes()
    assert b"PRIVATE" not in answer.data


def test_without_a_signer_there_is_no_key(place: Place) -> None:
    client = Place(place.folder).app().test_client()
    answer = client.get("/aci-signing-key")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (404, "SIGNER_UNKNOWN")
    assert "ac-discovery-pubkeys" not in client.get("/").text


def test_a_key_that_cannot_be_read_is_an_error(tmp_path: Path, key: Key) -> None:
    configuration = {**key.configuration, "GPG2_PUBLIC_KEY_FILENAME": str(tmp_path / "absent")}
    answer = Place(tmp_path, configuration).app().test_client().get("/aci-signing-key")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (503, "SIGNING_FAILED")
