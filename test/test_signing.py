"""Signatures over HTTP: of the exact bytes that are served, made once, and never left out in silence."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from data.signatures import Signatures
from endpoints.making import MAKINGS, Makings
from endpoints.signer import Signature, Signer
from endpoints.signing import Signing
from test.databases import free_port
from test.gnupg import Key, make_key, stand_in, verified
from test.images import Image, Layer
from test.layers import file
from test.people import People
from test.place import Place
from test.waiting import eventually, storing_is_waited_for

IMAGE = Image([Layer([file(b"etc/motd", b"hello\n" * 5000)])], run={"Entrypoint": ["/bin/app"]})
OTHER = Image([Layer([file(b"etc/other", b"x")])])
ROOTFS = "/c1/rootfs/acme/app/1.0"
SQUASH = "/c1/squash/acme/app/1.0"
ACI = "/c1/aci/registry.example.com/acme/app/1.0/aci/linux/amd64/"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("key"), "registry")


@pytest.fixture(scope="module")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("key"), "successor", algorithm="rsa2048")


@pytest.fixture
def place(tmp_path: Path, key: Key) -> Place:
    place = Place(tmp_path, key.configuration)
    place.push("acme/app:1.0", IMAGE)
    return place


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every image be stored before the end of its bytes."""
    storing_is_waited_for(monkeypatch)


@pytest.fixture
def signed(monkeypatch: pytest.MonkeyPatch) -> list[Signature]:
    """Return what is signed, as it is."""
    made: list[Signature] = []
    sign = Signer.sign

    def noting(self: Signer, chunks: Any, *, armoured: bool = True) -> Signature:
        made.append(sign(self, chunks, armoured=armoured))
        return made[-1]

    monkeypatch.setattr(Signer, "sign", noting)
    return made


def error(client: FlaskClient, url: str, method: str = "GET") -> tuple[int, str, str]:
    answer = client.open(url, method=method)
    (one,) = answer.get_json()["errors"]
    return answer.status_code, one["code"], one["message"]


# --- What is signed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "signature"),
    [
        (ROOTFS, f"{ROOTFS}.asc"),
        (SQUASH, f"{SQUASH}.asc"),
        (f"{ROOTFS}?compression=zstd", f"{ROOTFS}.asc?compression=zstd"),
        ("/c1/ext4/acme/app/1.0?spare=1M", "/c1/ext4/acme/app/1.0.asc?spare=1024K"),
        (ACI, ACI.replace("/aci/linux", "/aci.asc/linux")),
        (ACI, ACI.replace("/aci/linux", "/sig/linux")),
        (ACI, f"{ACI}.asc"),
        (ACI, f"{ACI.rstrip('/')}.asc"),
        ("/c1/aci/acme/app/1.0", "/c1/aci/acme/app/1.0.asc"),
    ],
)
def test_the_signature_is_of_the_bytes_that_are_served(place: Place, key: Key, url: str, signature: str) -> None:
    client = place.app().test_client()
    made = client.get(url).data
    answer = client.get(signature)
    assert answer.status_code == 200
    assert answer.content_type == "application/pgp-signature"
    assert answer.data.startswith(b"-----BEGIN PGP SIGNATURE-----")
    assert verified(made, answer.data, key.public.read_bytes()) == key.fingerprint
    assert verified(client.get(url).data, answer.data, key.public.read_bytes()) == key.fingerprint
    name = client.get(url).headers["Content-Disposition"].partition('"')[2].rstrip('"')
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}.asc"'


def test_what_is_made_is_signed_once_by_who_makes_it(place: Place, signed: list[Signature]) -> None:
    app = place.app()
    client = app.test_client()
    assert client.get(ROOTFS).data
    eventually(lambda: len(signed) == 1)
    first = client.get(f"{ROOTFS}.asc").data
    other_process = place.app().test_client()
    for each in (client, client, other_process):
        assert each.get(f"{ROOTFS}.asc").data == first
    assert len(signed) == 1


def test_who_asks_for_the_signature_first_has_the_image_made(place: Place, key: Key) -> None:
    client = place.app().test_client()
    for method, derived in (("HEAD", 0), ("GET", 1)):
        answer = client.open(f"{ROOTFS}.asc", method=method)
        assert answer.status_code == 202
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["Cache-Control"] == "no-store"
        if method == "GET":
            assert answer.get_json()["state"] in {"generating", "complete"}
            eventually(lambda: client.get(f"{ROOTFS}.asc").status_code == 200)
        assert len(place.derived()) == derived
    signature = client.get(f"{ROOTFS}.asc").data
    assert verified(client.get(ROOTFS).data, signature, key.public.read_bytes())
    assert client.head(f"{ROOTFS}.asc").status_code == 200


def test_jobs_and_commands_sign_what_they_make(place: Place, signed: list[Signature]) -> None:
    services = place.services()
    makings = Makings(services)
    from endpoints.derive import Deriver, Wish

    record = makings.make(Deriver(services).resolve(Wish("rootfs", "acme", "app", "1.0")))
    makings.close(seconds=120)
    assert len(signed) == 1
    assert services.signatures.find(record, signed[0].fingerprint) is not None


def test_a_signature_has_conditions_of_its_own(place: Place) -> None:
    client = place.app().test_client()
    assert client.get(ROOTFS).data
    answer = client.get(f"{ROOTFS}.asc")
    etag = answer.headers["ETag"]
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Last-Modified" in answer.headers
    assert client.get(f"{ROOTFS}.asc", headers={"If-None-Match": etag}).status_code == 304
    assert client.get(ROOTFS, headers={"If-None-Match": etag}).status_code == 200


def test_a_tag_that_ends_like_a_signature_goes_before_it(place: Place, key: Key) -> None:
    client = place.app().test_client()
    assert client.get(ROOTFS).data
    assert client.get(f"{ROOTFS}.asc").content_type == "application/pgp-signature"
    place.push("acme/app:1.0.asc", OTHER)
    whole = client.get(f"{ROOTFS}.asc")
    assert whole.content_type == "application/x-tar"
    assert verified(whole.data, client.get(f"{ROOTFS}.asc.asc").data, key.public.read_bytes())


def test_a_digest_has_a_signature_too(place: Place, key: Key) -> None:
    url = f"/c1/rootfs/acme/app/{place.push('acme/app:1.0', IMAGE)}"
    client = place.app().test_client()
    assert verified(client.get(url).data, client.get(f"{url}.asc").data, key.public.read_bytes())


@pytest.mark.parametrize("tag", ["9.9.asc", ".asc", "1.0.sha256.asc", "1.0.asc.sha256"])
def test_the_signature_of_what_is_not_there_is_not_there(place: Place, tag: str) -> None:
    assert error(place.app().test_client(), f"/c1/rootfs/acme/app/{tag}")[:2] == (404, "TAG_UNKNOWN")


def test_the_signature_of_what_cannot_be_made_is_an_error(place: Place) -> None:
    place.blob(IMAGE.layers[0]).unlink()
    assert place.app().test_client().get(f"{ROOTFS}.asc").status_code == 502


def test_who_may_not_read_the_image_gets_no_signature(tmp_path: Path, key: Key) -> None:
    place = Place(tmp_path, key.configuration)
    place.push("acme/secret:1.0", IMAGE, private=True)
    People(place.engine).user("somebody")
    client = place.app().test_client()
    assert client.get("/c1/rootfs/acme/secret/1.0.asc").status_code == 401
    assert client.get("/c1/rootfs/acme/secret/1.0.asc", auth=("somebody", "correct-horse")).status_code == 403


# --- Where nothing is signed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [f"{ROOTFS}.asc", ACI.replace("/aci/linux", "/aci.asc/linux")])
def test_without_a_signer_there_are_no_signatures(place: Place, url: str) -> None:
    client = Place(place.folder).app().test_client()
    assert error(client, url)[:2] == (404, "SIGNER_UNKNOWN")
    assert client.get(ROOTFS).data
    assert error(client, url)[:2] == (404, "SIGNER_UNKNOWN")
    assert len(place.derived()) == 1


def test_a_read_only_registry_signs_nothing_new(place: Place, key: Key) -> None:
    readonly = Place(place.folder, {**key.configuration, "REGISTRY_STATE": "readonly"}).app().test_client()
    assert error(readonly, f"{ROOTFS}.asc")[:2] == (404, "SIGNATURE_UNKNOWN")
    assert Place(place.folder).app().test_client().get(ROOTFS).data  # by one that has no signer
    assert error(readonly, f"{ROOTFS}.asc")[:2] == (404, "SIGNATURE_UNKNOWN")
    signature = place.app().test_client().get(f"{ROOTFS}.asc").data
    assert readonly.get(f"{ROOTFS}.asc").data == signature


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_what_was_stored_unsigned_is_signed_when_it_is_asked_for(place: Place, key: Key) -> None:
    whole = Place(place.folder).app().test_client().get(ROOTFS).data
    answer = place.app().test_client().get(f"{ROOTFS}.asc")
    assert answer.status_code == 200
    assert verified(whole, answer.data, key.public.read_bytes()) == key.fingerprint


def test_a_key_that_is_changed_signs_anew(place: Place, key: Key, other_key: Key) -> None:
    before = place.app().test_client()
    whole = before.get(ROOTFS).data
    old = before.get(f"{ROOTFS}.asc")
    after = Place(place.folder, other_key.configuration).app().test_client()
    new = after.get(f"{ROOTFS}.asc")
    assert verified(whole, old.data, key.public.read_bytes()) == key.fingerprint
    assert verified(whole, new.data, other_key.public.read_bytes()) == other_key.fingerprint
    assert new.headers["ETag"] != old.headers["ETag"]


def test_a_signer_that_cannot_sign_is_told_at_the_start_and_to_all_who_ask(
    place: Place, key: Key, other_key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Place(place.folder, {**key.configuration, "GPG2_PUBLIC_KEY_FILENAME": str(other_key.public)})
    client = wrong.app().test_client()
    assert [each.levelno for each in caplog.records if "nothing can be signed" in each.message] == [logging.ERROR]
    said = f"{other_key.public} does not verify what registry signs"
    status, code, message = error(client, f"{ROOTFS}.asc")
    assert (status, code) == (503, "SIGNING_FAILED")
    assert said in message
    assert client.head(f"{ROOTFS}.asc").status_code == 503
    assert client.get(ROOTFS).status_code == 200  # the image itself is as good as ever
    assert error(client, f"{ROOTFS}.asc")[:2] == (503, "SIGNING_FAILED")


@pytest.mark.parametrize(
    ("script", "size", "seconds", "told"),
    [
        ("exec sleep 600", 1 << 20, 0.5, "gpg-that-fails has read nothing for 0.5 s"),
        (
            "cat >/dev/null; echo 'gpg: no money left' >&2; exit 2",
            1 << 20,
            60,
            "gpg-that-fails ended with status 2: no money left",
        ),
        # As little as a pipe holds: nobody waits for it to be read.
        ("cat >/dev/null; exec sleep 600", 10, 0.5, "gpg-that-fails does not end, and was given 0.5 s"),
    ],
)
def test_a_gpg_that_begins_to_fail_is_told_and_harms_no_image(
    tmp_path: Path, key: Key, *, script: str, size: int, seconds: float, told: str
) -> None:
    place = Place(tmp_path, key.configuration)
    place.push("acme/app:1.0", Image([Layer([file(b"content", bytes(size))])]))
    app = place.app()
    signer = app.extensions["registry_verbs"].signer
    signer.sign([b"which has worked before"])
    signer._program, signer._seconds = stand_in(tmp_path, script), seconds
    client = app.test_client()
    whole = client.get(ROOTFS)
    assert (whole.status_code, len(whole.data) > size) == (200, True)
    status, code, message = error(client, f"{ROOTFS}.asc")
    assert (status, code) == (503, "SIGNING_FAILED")
    assert told in message
    assert client.get(ROOTFS).data == whole.data
    signer._program, signer._seconds = "gpg", 60
    signer._tried = None  # half a minute later
    eventually(lambda: client.get(f"{ROOTFS}.asc").status_code == 200)
    assert verified(whole.data, client.get(f"{ROOTFS}.asc").data, key.public.read_bytes())


def test_what_storage_holds_instead_of_the_image_is_not_signed(place: Place, signed: list[Signature]) -> None:
    assert Place(place.folder).app().test_client().get(ROOTFS).data
    (stored,) = [path for path in place.storage.glob("verbs/derived/*/*/*") if path.is_file()]
    stored.write_bytes(bytes(stored.stat().st_size))
    client = place.app().test_client()
    assert error(client, f"{ROOTFS}.asc")[:2] == (502, "DIGEST_MISMATCH")
    assert signed == []


def test_what_is_gone_from_storage_is_made_and_signed_anew(place: Place, key: Key) -> None:
    assert Place(place.folder).app().test_client().get(ROOTFS).data
    for path in place.storage.glob("verbs/derived/*/*/*"):
        path.unlink()
    client = place.app().test_client()
    eventually(lambda: client.get(f"{ROOTFS}.asc").status_code == 200)
    assert verified(client.get(ROOTFS).data, client.get(f"{ROOTFS}.asc").data, key.public.read_bytes())


def test_nobody_waits_longer_than_may_be(place: Place, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    held, sign = threading.Event(), Signer.sign

    def holding(self: Signer, chunks: Any, *, armoured: bool = True) -> Signature:
        assert held.wait(300)
        return sign(self, chunks, armoured=armoured)

    monkeypatch.setattr(Signer, "sign", holding)
    client = Place(place.folder, {**key.configuration, "VERBS_PULL_SECONDS": 0}).app().test_client()
    assert client.get(ROOTFS).data
    answer = client.get(f"{ROOTFS}.asc")
    assert (answer.status_code, answer.get_json()["state"]) == (202, "complete")
    held.set()
    eventually(lambda: client.get(f"{ROOTFS}.asc").status_code == 200)


def test_many_who_ask_at_once_have_one_signature_made(
    place: Place, signed: list[Signature], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Place(place.folder).app().test_client().get(ROOTFS).data
    app = place.app()
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(app.test_client().get(f"{ROOTFS}.asc").data)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signed) == 1
    assert len(set(answers)) == 1
    assert b"BEGIN PGP SIGNATURE" in answers[0]


def test_a_signature_whose_image_is_dropped_meanwhile_is_not_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = place.app()
    services = app.extensions["registry_verbs"]
    add = Signatures.add

    def dropping(self: Signatures, record: Any, *arguments: Any) -> Any:
        services.derived.delete(record.key)
        return add(self, record, *arguments)

    monkeypatch.setattr(Signatures, "add", dropping)
    client = app.test_client()
    assert client.get(ROOTFS).data
    signing: Signing = app.extensions[MAKINGS].signing
    signing.close(120)
    monkeypatch.setattr(Signatures, "add", add)
    eventually(lambda: client.get(f"{ROOTFS}.asc").status_code == 200)  # made again, and signed


def test_the_collector_drops_signatures_with_their_images(place: Place) -> None:
    from endpoints.collector import collector_of

    client = place.app().test_client()
    assert client.get(ROOTFS).data
    assert client.get(f"{ROOTFS}.asc").status_code == 200
    services = place.services()
    report = collector_of(services).collect()
    assert (report.signatures, report.failures) == (0, ())
    place.sql("DELETE FROM tag")
    assert collector_of(services).collect(dry_run=True).signatures == 0  # its image is still there
    report = collector_of(services).collect()
    assert (report.total.count > 0, report.signatures) == (True, 1)
    assert "signatures: 1" in report.summary


def test_a_service_has_no_key_lying_about_before_it_signs(place: Place) -> None:
    app = place.app()
    signer = app.extensions["registry_verbs"].signer
    assert signer._home is None
    assert app.test_client().get(ROOTFS).data
    assert app.test_client().get(f"{ROOTFS}.asc").status_code == 200
    assert signer._home is not None


# --- The rest of the service ------------------------------------------------------------------------------------------


@pytest.fixture
def broken(place: Place) -> FlaskClient:
    place.folder.joinpath("key").write_text("none")
    configuration = {**place.more, "GPG2_PRIVATE_KEY_FILENAME": str(place.folder / "key")}
    return Place(place.folder, configuration).app().test_client()


def metric(client: FlaskClient, name: str) -> float:
    (line,) = [each for each in client.get("/metrics").text.splitlines() if each.startswith(f"registry_verbs_{name}")]
    return float(line.rpartition(" ")[2])


def test_metrics_tell_whether_it_can_be_signed(place: Place, broken: FlaskClient) -> None:
    client = place.app().test_client()
    assert metric(client, "signer_up") == 1
    assert metric(broken, "signer_up") == 0
    assert metric(client, "signing_failures_total") >= 1
    assert "signer_up" not in Place(place.folder).app().test_client().get("/metrics").text


@pytest.mark.parametrize("path", ["/health", "/health/instance"])
def test_health_tells_whether_it_can_be_signed(place: Place, broken: FlaskClient, path: str) -> None:
    def told(client: FlaskClient) -> tuple[int, dict[str, bool]]:
        answer = client.get(path)
        assert answer.get_json()["status_code"] == answer.status_code
        return answer.status_code, answer.get_json()["data"]["services"]

    assert told(place.app().test_client()) == (200, {"database": True, "signer": True})
    assert told(broken) == (503, {"database": True, "signer": False})
    assert told(Place(place.folder).app().test_client()) == (200, {"database": True})
    assert broken.get("/c1/_internal_ping").status_code == 200


def test_health_tells_that_the_database_is_gone(tmp_path: Path) -> None:
    client = (
        Place(tmp_path, {"VERBS_DB_URI": f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"})
        .app()
        .test_client()
    )
    answer = client.get("/health")
    assert (answer.status_code, answer.get_json()["data"]["services"]) == (503, {"database": False})
