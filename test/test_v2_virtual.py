"""Virtual tags over `/v2`: an image in one layer under a name that nobody has pushed, to whoever may read the image."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from data.owntables import DatabaseUnavailable
from data.virtuals import Virtuals
from endpoints.v2.virtual import VirtualTag
from test.clients import program, run
from test.images import CONFIG, LAYER, MANIFEST, Image, Layer
from test.layers import directory, file, symlink
from test.makers import Gate
from test.place import Place
from test.server import Running, served
from test.waiting import eventually
from util.platform import Platform

PASSWORD = "correct-horse"
APP = Image(
    [Layer([file(b"etc/hostname", b"base\n")]), Layer([file(b"etc/hostname", b"top\n")], "zstd")],
    run={"Cmd": ["/bin/sh"]},
)
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"


@dataclass(frozen=True)
class Site:
    """A registry with the private repository `alice/app`, asked by alice unless somebody else is named."""

    place: Place
    app: Flask
    client: FlaskClient

    def get(self, path: str, *, who: str | None = "alice", method: str = "GET", **headers: str) -> TestResponse:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.open(f"/v2/{path}", method=method, headers=given | credentials(who))

    def manifest(self, tag: str = "1.0.squash", name: str = "alice/app") -> Any:
        answer = self.get(f"{name}/manifests/{tag}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Docker-Content-Digest"] == digest_of(answer.data)
        return answer.json

    def blob(self, descriptor: Any, name: str = "alice/app") -> bytes:
        answer = self.get(f"{name}/blobs/{descriptor['digest']}")
        assert answer.status_code == 200, answer.text
        assert digest_of(answer.data) == descriptor["digest"]
        content: bytes = answer.data
        assert len(content) == descriptor["size"]
        return content


def credentials(who: str | None) -> dict[str, str]:
    if who is None:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{who}:{PASSWORD}".encode()).decode()}


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def place_in(folder: Path, **settings: Any) -> Place:
    place = Place(folder, settings)
    administration = place.services().administration
    for user in ("alice", "eve"):
        administration.create_user(user, PASSWORD)
    place.push("alice/app:1.0", APP, private=True)
    return place


def site_of(place: Place) -> Site:
    app = place.app()
    return Site(place, app, app.test_client())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_of(place_in(tmp_path))


def code(answer: TestResponse) -> str:
    assert answer.json is not None
    [error] = answer.json["errors"]
    return str(error["code"])


# --- The name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1.0.squash", VirtualTag("1.0")),
        ("1.0.squash-linux-arm64", VirtualTag("1.0", Platform("linux", "arm64"))),
        ("1.0.squash-linux-arm-v6", VirtualTag("1.0", Platform("linux", "arm", "v6"))),
        ("v1-rc.1.squash-linux-s390x", VirtualTag("v1-rc.1", Platform("linux", "s390x"))),
        ("1.0.squash-linux-x86_64", VirtualTag("1.0", Platform("linux", "amd64"))),
        ("1.0.squash.squash", VirtualTag("1.0.squash")),
        ("1.0", None),
        (".squash", None),
        ("squash", None),
        ("1.0.squashed", None),
        ("1.0.squash-", None),
        ("1.0.squash-linux", None),
        ("1.0.squash-Linux-arm64", None),
        ("1.0.squash-linux-arm-v7-x", None),
        ("1.0.squash-linux--v7", None),
    ],
)
def test_a_virtual_tag_is_told_by_its_name(text: str, meant: VirtualTag | None) -> None:
    assert VirtualTag.parse(text) == meant


# --- A pull -----------------------------------------------------------------------------------------------------------


def test_a_pull_gets_the_image_as_one_layer(site: Site) -> None:
    answer = site.get("alice/app/manifests/1.0.squash")
    assert (answer.status_code, answer.content_type) == (200, MANIFEST)
    manifest = site.manifest()
    assert manifest["config"]["mediaType"] == CONFIG
    [layer] = manifest["layers"]
    assert layer["mediaType"] == f"{LAYER}+gzip"
    rootfs = gzip.decompress(site.blob(layer))
    verb = site.client.get("/c1/rootfs/alice/app/1.0", headers=credentials("alice"))
    assert rootfs == verb.data
    config = json.loads(site.blob(manifest["config"]))
    assert config["rootfs"]["diff_ids"] == [digest_of(rootfs)]
    assert config["config"] == {"Cmd": ["/bin/sh"]}


def test_a_client_that_asks_for_the_digest_first_gets_it_by_that(site: Site) -> None:
    head = site.get("alice/app/manifests/1.0.squash", method="HEAD")
    assert (head.status_code, head.data) == (200, b"")
    digest = head.headers["Docker-Content-Digest"]
    answer = site.get(f"alice/app/manifests/{digest}", Accept=MANIFEST)
    assert answer.status_code == 200
    assert digest_of(answer.data) == digest
    assert head.headers["Content-Length"] == str(len(answer.data))
    assert site.get(f"alice/app/manifests/{digest}", method="HEAD").status_code == 200


def test_it_is_the_object_that_the_verb_gives(site: Site) -> None:
    [layer] = site.manifest()["layers"]
    answer = site.client.get("/c1/rootfs/alice/app/1.0?compression=gzip", headers=credentials("alice"))
    assert digest_of(answer.data) == layer["digest"]
    assert len(site.place.derived()) == 1


def test_the_layer_is_had_in_parts_and_its_size_by_head(site: Site) -> None:
    [layer] = site.manifest()["layers"]
    path = f"alice/app/blobs/{layer['digest']}"
    whole = site.blob(layer)
    head = site.get(path, method="HEAD")
    assert head.headers["Content-Length"] == str(len(whole))
    assert head.headers["Docker-Content-Digest"] == layer["digest"]
    part = site.get(path, Range="bytes=10-")
    assert (part.status_code, part.data) == (206, whole[10:])
    config = site.manifest()["config"]
    assert site.get(f"alice/app/blobs/{config['digest']}", method="HEAD").headers["Content-Length"] == str(
        config["size"]
    )


def test_each_platform_has_its_virtual_tag(site: Site) -> None:
    images = [Image([Layer([file(b"arch", name.encode())])], name) for name in PLATFORMS]
    site.place.push("alice/app:multi", *images)
    for platform in PLATFORMS:
        tag = f"multi.squash-{platform.replace('/', '-')}"
        config = json.loads(site.blob(site.manifest(tag)["config"]))
        assert [config["os"], config["architecture"]] == platform.split("/")[:2]
    assert site.manifest("multi.squash") == site.manifest("multi.squash-linux-amd64")
    answer = site.get("alice/app/manifests/multi.squash-linux-s390x")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")
    assert "linux/arm64" in answer.text


def test_a_tag_of_that_very_name_goes_first(site: Site) -> None:
    digest = site.place.push("alice/app:1.0.squash", Image([Layer([file(b"a", b"real")])]))
    answer = site.get("alice/app/manifests/1.0.squash")
    assert answer.headers["Docker-Content-Digest"] == digest
    assert site.place.derived() == []
    [layer] = site.manifest("1.0.squash.squash")["layers"]
    assert b"real" in gzip.decompress(site.blob(layer))


def test_a_tag_that_moves_takes_its_virtual_tag_along(site: Site) -> None:
    before = site.manifest()
    site.place.push("alice/app:1.0", Image([Layer([file(b"new", b"one")])]))
    assert site.manifest() != before


def test_it_is_in_no_list_of_tags(site: Site) -> None:
    site.manifest()
    answer = site.get("alice/app/tags/list")
    assert answer.json == {"name": "alice/app", "tags": ["1.0"]}


# --- Who may have it --------------------------------------------------------------------------------------------------


def test_who_may_not_read_the_repository_gets_nothing_of_it(site: Site) -> None:
    manifest = site.manifest()
    digest = digest_of(site.get("alice/app/manifests/1.0.squash").data)
    [layer] = manifest["layers"]
    paths = ("manifests/1.0.squash", f"manifests/{digest}", f"blobs/{layer['digest']}")
    for path in paths:
        assert site.get(f"alice/app/{path}", who=None).status_code == 401
        assert site.get(f"alice/app/{path}", who="eve").status_code == 403


def test_its_digests_mean_nothing_elsewhere(site: Site) -> None:
    site.place.push("alice/other:1.0", Image([Layer([file(b"a", b"b")])]))
    manifest = site.manifest()
    digest = digest_of(site.get("alice/app/manifests/1.0.squash").data)
    answer = site.get(f"alice/other/manifests/{digest}")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")
    answer = site.get(f"alice/other/blobs/{manifest['layers'][0]['digest']}")
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize("again", [False, True])
def test_its_digests_mean_nothing_in_a_later_repository_of_that_name(site: Site, *, again: bool) -> None:
    manifest = site.manifest()
    digest = digest_of(site.get("alice/app/manifests/1.0.squash").data)
    site.place.services().administration.delete_repository("alice", "app")
    site.place.push("alice/app:1.0", APP if again else Image([Layer([file(b"a", b"b")])]))
    digests = [manifest["config"]["digest"], manifest["layers"][0]["digest"]]
    for path in (f"manifests/{digest}", *(f"blobs/{each}" for each in digests)):
        assert site.get(f"alice/app/{path}", who=None).status_code == (200 if again else 404)


def test_a_configuration_is_no_manifest(site: Site) -> None:
    answer = site.get(f"alice/app/manifests/{site.manifest()['config']['digest']}")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")


# --- What there is none of --------------------------------------------------------------------------------------------


def test_a_tag_that_is_not_there_has_no_virtual_one(site: Site) -> None:
    answer = site.get("alice/app/manifests/2.0.squash")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")
    assert "2.0.squash" in answer.text


def test_an_artifact_cannot_be_squashed_and_it_is_said_why(site: Site) -> None:
    site.place.push_artifact("alice/app:chart")
    answer = site.get("alice/app/manifests/chart.squash")
    assert (answer.status_code, code(answer)) == (415, "UNSUPPORTED")
    assert "application/vnd.cncf.helm" in answer.text


def test_an_image_of_schema_1_comes_as_one_that_is_read_today(site: Site) -> None:
    site.place.push("alice/app:old", APP)
    layers = [digest_of(layer.blob) for layer in APP.layers]
    v1 = [{"id": f"{at}" * 64, "os": "linux", "architecture": "amd64", "config": {"Cmd": ["old"]}} for at in (1, 0)]
    v1[0]["parent"] = v1[1]["id"]
    document = {
        "schemaVersion": 1,
        "name": "alice/app",
        "tag": "old",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": digest} for digest in reversed(layers)],
        "history": [{"v1Compatibility": json.dumps(each)} for each in v1],
    }
    digest = digest_of(json.dumps(document).encode())
    text = json.dumps(document).replace("'", "''")
    site.place.sql(
        f"UPDATE manifest SET manifest_bytes = '{text}', digest = '{digest}', media_type_id ="
        f" (SELECT id FROM mediatype WHERE name = '{SCHEMA1}') WHERE id ="
        " (SELECT manifest_id FROM tag WHERE name = 'old')"
    )
    manifest = site.manifest("old.squash")
    [layer] = manifest["layers"]
    assert b"top\n" in gzip.decompress(site.blob(layer))
    assert json.loads(site.blob(manifest["config"]))["config"] == {"Cmd": ["old"]}


def test_what_has_been_dropped_is_gone_until_the_tag_is_pulled_again(site: Site) -> None:
    manifest = site.manifest()
    digest = digest_of(site.get("alice/app/manifests/1.0.squash").data)
    [layer] = manifest["layers"]
    services = site.place.services()
    for record in services.derived.all():
        services.derived.delete(record.key)
        (site.place.storage / record.path).unlink()
    answer = site.get(f"alice/app/manifests/{digest}")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")
    answer = site.get(f"alice/app/blobs/{layer['digest']}")
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")
    assert site.manifest() == manifest
    assert site.blob(layer)


def test_a_layer_whose_object_has_vanished_is_not_there(site: Site) -> None:
    [layer] = site.manifest()["layers"]
    [record] = site.place.services().derived.all()
    (site.place.storage / record.path).unlink()
    answer = site.get(f"alice/app/blobs/{layer['digest']}")
    assert (answer.status_code, code(answer)) == (404, "BLOB_UNKNOWN")


def test_an_image_that_cannot_be_made_says_why(site: Site) -> None:
    site.place.blob(APP.layers[0]).write_bytes(b"short")
    answer = site.get("alice/app/manifests/1.0.squash")
    assert answer.status_code == 502
    assert "has 5 bytes in storage" in answer.text


def test_without_our_own_database_what_is_not_there_is_still_absent(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("it is down")

    monkeypatch.setattr(Virtuals, "find", down)
    assert site.get(f"alice/app/manifests/sha256:{'0' * 64}").status_code == 404
    assert site.get(f"alice/app/blobs/sha256:{'0' * 64}").status_code == 404


def test_a_read_only_registry_serves_what_is_stored(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    readonly = site_of(Place(tmp_path, {"REGISTRY_STATE": "readonly"}))
    answer = readonly.get("alice/app/manifests/1.0.squash")
    assert (answer.status_code, code(answer)) == (404, "MANIFEST_UNKNOWN")
    assert "read-only" in answer.text
    manifest = site_of(place).manifest()
    assert readonly.manifest() == manifest
    assert readonly.blob(manifest["layers"][0])


# --- One that takes longer --------------------------------------------------------------------------------------------


def test_a_pull_that_would_wait_for_long_is_told_when_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(place_in(tmp_path, VERBS_PULL_SECONDS=0))
    gate = Gate(monkeypatch, 100)
    for method in ("GET", "HEAD"):
        answer = site.get("alice/app/manifests/1.0.squash", method=method)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        if method == "GET":
            assert code(answer) == "TOOMANYREQUESTS"
            assert "alice/app:1.0 in one layer is being made" in answer.text
    gate.opened.set()
    eventually(lambda: site.get("alice/app/manifests/1.0.squash", method="HEAD").status_code == 200)
    assert gate.generations == 1


# --- Pushed back ------------------------------------------------------------------------------------------------------


def test_what_was_pulled_so_may_be_pushed_to_where_it_came_from(site: Site) -> None:
    # The client finds all blobs there, and sends the manifest alone.
    content = site.get("alice/app/manifests/1.0.squash").data
    headers = {"Content-Type": MANIFEST, **credentials("alice")}
    answer = site.client.put("/v2/alice/app/manifests/flat", data=content, headers=headers)
    assert answer.status_code == 201, answer.text
    services = site.place.services()
    for record in services.derived.all():
        services.derived.delete(record.key)
        (site.place.storage / record.path).unlink()
    [layer] = site.manifest("flat")["layers"]
    assert site.blob(layer)
    assert site.blob(site.manifest("flat")["config"])


def test_a_layer_with_other_bytes_than_it_should_have_is_not_taken_over(site: Site) -> None:
    content = site.get("alice/app/manifests/1.0.squash").data
    [record] = site.place.services().derived.all()
    path = site.place.storage / record.path
    path.write_bytes(b"x" * path.stat().st_size)
    headers = {"Content-Type": MANIFEST, **credentials("alice")}
    answer = site.client.put("/v2/alice/app/manifests/flat", data=content, headers=headers)
    assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
    assert not list(site.place.storage.glob(f"sha256/*/{record.sha256}"))


def test_a_manifest_with_something_that_is_nowhere_is_refused_as_ever(site: Site) -> None:
    manifest = site.manifest()
    manifest["layers"].append({**manifest["layers"][0], "digest": f"sha256:{'0' * 64}"})
    headers = {"Content-Type": MANIFEST, **credentials("alice")}
    answer = site.client.put("/v2/alice/app/manifests/flat", data=json.dumps(manifest).encode(), headers=headers)
    assert answer.status_code == 400
    assert "MANIFEST_BLOB_UNKNOWN" in answer.text


# --- Clients ----------------------------------------------------------------------------------------------------------

SLOW = """
import time
from endpoints.derive import Deriver
from endpoints.streams import Stream
generate = Deriver.generate
def slowly(chunks):
    for chunk in chunks:
        time.sleep(1.5)
        yield chunk
def generating(deriver, image):
    made = generate(deriver, image)
    return Stream(slowly(made.chunks), made.size) if image.source.tag == "1" else made
Deriver.generate = generating
import app
app.main()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Serve private images to alice, two workers side by side; nobody waits longer than a second for what is made."""
    place = place_in(tmp_path_factory.mktemp("served"), VERBS_PULL_SECONDS="1")
    busybox = Path(program("busybox")).read_bytes()
    base = [directory(b"bin"), file(b"bin/busybox", busybox, mode=0o755), symlink(b"bin/echo", b"nowhere")]
    image = Image([Layer(base), Layer([symlink(b"bin/echo", b"busybox")])], run={"Entrypoint": ["/bin/echo", "hello"]})
    place.push("alice/hello:1", image, private=True)
    place.push("alice/hello:2", Image([Layer([file(b"etc/hostname", b"arm\n")])], "linux/arm64"), image, private=True)
    with served(place, workers=2, program=SLOW) as running:
        yield running


@pytest.fixture
def host(server: Running) -> str:
    return server.url.removeprefix("http://")


def skopeo(host: str, tag: str, folder: Path) -> Any:
    """Copy an image into `folder`, and return its manifest."""
    known = ("--src-tls-verify=false", f"--src-creds=alice:{PASSWORD}")
    run("skopeo", "--insecure-policy", "copy", *known, f"docker://{host}/alice/hello:{tag}", f"dir:{folder}")
    return json.loads((folder / "manifest.json").read_bytes())


def test_skopeo_copies_a_virtual_tag_after_it_was_told_to_come_again(
    server: Running, host: str, tmp_path: Path
) -> None:
    manifest = skopeo(host, "1.squash", tmp_path / "one")
    assert len(manifest["layers"]) == 1
    log = server.output.read_text() + server.log.read_text()
    assert re.search(r'"GET /v2/alice/hello/manifests/1\.squash HTTP/1\.1" 429 ', log)
    assert skopeo(host, "1.squash", tmp_path / "two") == manifest


def test_skopeo_copies_the_virtual_tag_of_another_platform(host: str, tmp_path: Path) -> None:
    name = skopeo(host, "2.squash-linux-arm64", tmp_path / "arm")["config"]["digest"].removeprefix("sha256:")
    assert json.loads((tmp_path / "arm" / name).read_bytes())["architecture"] == "arm64"


def test_podman_pulls_and_runs_a_virtual_tag_and_pushes_it_back(host: str) -> None:
    # podman takes no path of more than 50 characters here, and pytest's have more.
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        where = ("--root", f"{folder}/r", "--runroot", f"{folder}/rr", "--storage-driver", "vfs")
        how = ("--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc")
        known = ("--tls-verify=false", f"--creds=alice:{PASSWORD}", "-q")
        name = f"{host}/alice/hello:1.squash"

        def podman(*arguments: str) -> bytes:
            return run("podman", *where, *how, *arguments)

        try:
            podman("pull", *known, name)
            [seen] = json.loads(podman("inspect", "--type", "image", name))
            assert len(seen["RootFS"]["Layers"]) == 1
            limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
            assert podman("run", "--rm", "--network", "none", *limits, name, "one layer") == b"hello one layer\n"
            podman("tag", name, f"{host}/alice/hello:flat")
            podman("push", *known, f"{host}/alice/hello:flat")
            podman("rmi", "--all", "--force")
            podman("pull", *known, f"{host}/alice/hello:flat")
        finally:
            podman("rmi", "--all", "--force")


def test_a_stranger_s_skopeo_gets_nothing(host: str) -> None:
    for credentials in ("--no-creds", f"--creds=eve:{PASSWORD}"):
        command = [
            program("skopeo"),
            "inspect",
            "--tls-verify=false",
            credentials,
            f"docker://{host}/alice/app:1.0.squash",
        ]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
