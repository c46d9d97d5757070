"""`SHA256SUMS` and its signatures: what is listed, and what systemd makes of it."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from endpoints.derive import DerivedImage, Deriver
from endpoints.streams import Stream
from test.clients import program, run
from test.gnupg import Key, make_key, verified
from test.images import Image, Layer
from test.layers import directory, file
from test.people import People
from test.place import Place
from test.server import Running, curl, served
from test.waiting import PATIENT, eventually, storing_is_waited_for

IMAGE = Image([Layer([directory(b"etc"), file(b"etc/os-release", b"ID=test\n"), directory(b"usr")])])
OTHER = Image([Layer([file(b"etc/other", b"x")])])
ARM64 = Image([Layer([file(b"etc/arm")])], platform="linux/arm64")
BASE = "/c1/rootfs/acme/app"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("key"), "registry")


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every image be stored before the end of its bytes."""
    storing_is_waited_for(monkeypatch)


@pytest.fixture
def place(tmp_path: Path, key: Key) -> Place:
    place = Place(tmp_path, key.configuration)
    place.push("acme/app:1.0", IMAGE)
    place.push("acme/app:2.0", OTHER, ARM64)
    place.push("acme/app:3.0", OTHER)
    return place


@pytest.fixture
def client(place: Place) -> FlaskClient:
    return place.app().test_client()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- The list ---------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_listed_by_the_last_part_of_its_url(client: FlaskClient) -> None:
    assert (client.get(f"{BASE}/SHA256SUMS").status_code, client.get(f"{BASE}/SHA256SUMS").data) == (200, b"")
    kept = {tag: sha256(client.get(f"{BASE}/{tag}").data) for tag in ("2.0", "1.0")}
    answer = client.get(f"{BASE}/SHA256SUMS")
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.text == f"{kept['1.0']}  1.0\n{kept['2.0']}  2.0\n"
    assert client.head(f"{BASE}/SHA256SUMS").content_length == len(answer.data)
    etag = answer.headers["ETag"]
    assert client.get(f"{BASE}/SHA256SUMS", headers={"If-None-Match": etag}).status_code == 304


def test_what_is_not_got_there_is_not_listed(place: Place, client: FlaskClient) -> None:
    whole = client.get(f"{BASE}/1.0").data
    for other in (f"{BASE}/3.0?compression=gzip", f"{BASE}/2.0?platform=linux/arm64", "/c1/squash/acme/app/3.0"):
        assert client.get(other).data
    assert client.get(f"{BASE}/SHA256SUMS").text == f"{sha256(whole)}  1.0\n"
    zipped = sha256(client.get(f"{BASE}/3.0?compression=gzip").data)
    assert client.get(f"{BASE}/SHA256SUMS?compression=gzip").text == f"{zipped}  3.0\n"
    assert client.get("/c1/squash/acme/app/SHA256SUMS").text.endswith("  3.0\n")
    place.push("acme/app:1.0", OTHER)
    assert client.get(f"{BASE}/SHA256SUMS").text == ""


def test_an_image_asked_for_by_its_digest_is_listed_as_that(place: Place, client: FlaskClient) -> None:
    digest = place.push("acme/app:1.0", IMAGE)
    whole = client.get(f"{BASE}/{digest}").data
    assert client.get(f"{BASE}/SHA256SUMS").text == f"{sha256(whole)}  {digest}\n"


def test_tags_of_that_name_go_before_it(place: Place, client: FlaskClient, key: Key) -> None:
    assert client.get(f"{BASE}/1.0").data
    place.push("acme/app:SHA256SUMS", OTHER)
    whole = client.get(f"{BASE}/SHA256SUMS")
    assert whole.content_type == "application/x-tar"
    assert verified(whole.data, client.get(f"{BASE}/SHA256SUMS.asc").data, key.public.read_bytes())
    place.push("acme/app:SHA256SUMS.gpg", OTHER)
    assert client.get(f"{BASE}/SHA256SUMS.gpg").content_type == "application/x-tar"


def test_who_may_not_read_gets_no_list(place: Place) -> None:
    place.push("acme/secret:1.0", IMAGE, private=True)
    People(place.engine).user("somebody")
    client = place.app().test_client()
    for name in ("SHA256SUMS", "SHA256SUMS.gpg"):
        assert client.get(f"/c1/rootfs/acme/secret/{name}").status_code == 401
        assert client.get(f"/c1/rootfs/acme/secret/{name}", auth=("somebody", "correct-horse")).status_code == 403


@pytest.mark.parametrize(
    ("path", "code"),
    [("rootfs/acme/absent/SHA256SUMS", "REPOSITORY_UNKNOWN"), ("floppy/acme/app/SHA256SUMS", "VERB_UNKNOWN")],
)
def test_where_nothing_can_be_there_is_no_list(client: FlaskClient, path: str, code: str) -> None:
    answer = client.get(f"/c1/{path}")
    assert answer.status_code in (401, 404)
    assert answer.status_code == 401 or answer.get_json()["errors"][0]["code"] == code


def test_what_is_being_made_is_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on, generate = threading.Event(), Deriver.generate

    def held(self: Deriver, image: DerivedImage) -> Stream:
        assert going_on.wait(300)
        return generate(self, image)

    monkeypatch.setattr(Deriver, "generate", held)
    client = place.app().test_client()
    making = threading.Thread(target=lambda: client.get(f"{BASE}/1.0").data)
    making.start()
    services = place.services()
    eventually(lambda: list(services.derived.all()))
    threading.Timer(1, going_on.set).start()
    assert client.get(f"{BASE}/SHA256SUMS").text.endswith("  1.0\n")
    making.join()


# --- Its signatures ---------------------------------------------------------------------------------------------------


def test_the_list_is_signed(client: FlaskClient, key: Key) -> None:
    assert client.get(f"{BASE}/1.0").data
    content = client.get(f"{BASE}/SHA256SUMS").data
    for name, armoured in (("SHA256SUMS.gpg", False), ("SHA256SUMS.asc", True)):
        answer = client.get(f"{BASE}/{name}")
        assert (answer.status_code, answer.content_type) == (200, "application/pgp-signature")
        assert answer.data.startswith(b"-----BEGIN PGP SIGNATURE-----") == armoured
        assert verified(content, answer.data, key.public.read_bytes()) == key.fingerprint


def test_without_a_signer_the_list_has_no_signature(place: Place) -> None:
    client = Place(place.folder).app().test_client()
    assert client.get(f"{BASE}/SHA256SUMS").status_code == 200
    answer = client.get(f"{BASE}/SHA256SUMS.gpg")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (404, "SIGNER_UNKNOWN")


def test_a_list_that_cannot_be_signed_is_an_error(place: Place, tmp_path: Path) -> None:
    configuration = {**place.more, "GPG2_PRIVATE_KEY_FILENAME": str(tmp_path / "absent")}
    answer = Place(place.folder, configuration).app().test_client().get(f"{BASE}/SHA256SUMS.gpg")
    assert (answer.status_code, answer.get_json()["errors"][0]["code"]) == (503, "SIGNING_FAILED")


# --- systemd ----------------------------------------------------------------------------------------------------------


def test_only_systemd_is_told_that_there_is_but_the_list(client: FlaskClient) -> None:
    assert client.get(f"{BASE}/1.0").data
    own = client.get(f"{BASE}/1.0.sha256")
    assert (own.status_code, own.headers["Vary"]) == (200, "User-Agent")
    told = client.get(f"{BASE}/1.0.sha256", headers={"User-Agent": "systemd-pull/252"})
    assert (told.status_code, told.get_json()["errors"][0]["code"]) == (404, "CHECKSUM_UNKNOWN")


@pytest.fixture
def running(place: Place) -> Iterator[Running]:
    with served(place, program=PATIENT) as running:
        yield running


def pull(running: Running, verify: str, *, key: Key | None = None, tag: str = "1.0") -> tuple[int, str]:
    """Have systemd pull the image as a machine, believing `key` alone. Return how that ended."""
    folder = running.place.folder
    command = [program("systemd-pull"), f"--verify={verify}", "--settings=no", "--sync=no"]
    command += [f"--image-root={folder}", "tar", f"{running.url}{BASE}/{tag}", "machine"]
    if key is not None:
        keyring = folder / "keyring"
        keyring.write_bytes(
            run("gpg", "--batch", "--no-options", "--homedir", str(folder), "--dearmor", stdin=key.public.read_bytes())
        )
        # Its keyring lies in a fixed place: there for this process alone.
        script = 'mount --bind "$1" /lib/systemd/import-pubring.gpg && shift && exec "$@"'
        command = [program("unshare"), "--mount", "sh", "-c", script, "sh", str(keyring), *command]
    done = subprocess.run(command, capture_output=True, check=False, timeout=600, env={"PATH": os.defpath})
    return done.returncode, done.stderr.decode()


def test_systemd_pulls_an_image_with_its_checksum(running: Running) -> None:
    status, said = pull(running, "checksum")  # which nobody has made before
    assert (status, "SHA256 checksum of" in said) == (0, True), said
    assert (running.place.folder / "machine" / "etc" / "os-release").read_bytes() == b"ID=test\n"


def test_systemd_pulls_an_image_with_its_signature(running: Running, key: Key) -> None:
    assert curl("-f", f"{running.url}{BASE}/1.0").stdout  # systemd asks for image, list and signature at once
    status, said = pull(running, "signature", key=key)
    assert (status, "Signature verification succeeded" in said) == (0, True), said
    assert (running.place.folder / "machine" / "etc" / "os-release").read_bytes() == b"ID=test\n"


def test_systemd_pulls_nothing_that_somebody_else_has_signed(running: Running, tmp_path: Path) -> None:
    status, said = pull(running, "signature", key=make_key(tmp_path, "somebody else"))
    assert (status != 0, "Signature verification failed" in said) == (True, True), said
    assert not (running.place.folder / "machine").exists()
