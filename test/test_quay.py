"""Beside a Quay: everything that is known of a registry which Quay's own models wrote, asked of it over HTTP.

SQLite and PostgreSQL, blobs in a folder and in a bucket. Nothing of Quay's may have changed when the tests are over.
"""

import base64
import io
import json
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from test.clients import run
from test.page import beside
from test.quayside import Quay, quay
from test.s3server import s3_server
from test.server import served
from util.digest import Digest

WAYS = [("sqlite", "folder"), ("sqlite", "s3"), ("postgresql", "folder"), ("postgresql", "s3"), ("role", "folder")]
"""What kind of database it is, `role` for PostgreSQL by a role that may do no more than the page for operators says."""

VERBS = ("aci", "squash", "rootfs", "oci", "bundle", "incus", "wsl", "squashfs", "ext4")
MOST = 1 << 26


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The first of the answer's errors."""
        error: dict[str, Any] = json.loads(self.body)["errors"][0]
        return error


@dataclass(frozen=True)
class Side:
    """A server beside a Quay."""

    quay: Quay
    url: str
    tokens: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        path: str,
        who: str | None = None,
        *,
        login: tuple[str, str] | None = None,
        method: str = "GET",
        **more: str,
    ) -> Answer:
        """Ask as the user or robot `who`, or with the name and the password `login`; `more` are headers."""
        if who is not None:
            login = (who, self.quay.password(who))
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        if login is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
        request = urllib.request.Request(f"{self.url}{path}", headers=headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return Answer(answer.status, answer.headers, answer.read(MOST))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def image(self, name: str, who: str | None = None, verb: str = "rootfs", query: str = "") -> Answer:
        """Ask for `namespace/repository:tag` by `verb`."""
        return self.ask(f"/c1/{verb}/{name.replace(':', '/')}{query}", who)

    def manifest(self, name: str, reference: str, who: str | None = None, method: str = "GET") -> Answer:
        login = None if who is None else (who, self.quay.password(who))
        return self.v2(f"/v2/{name}/manifests/{reference}", f"repository:{name}:pull", login, method)

    def v2(self, path: str, scope: str, login: tuple[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask as a registry's client does: with a token that a name and a password were good for."""
        granted = self.ask(f"/v2/auth?service=quay.example.com&scope={scope}", login=login)
        if granted.status != 200:
            return granted
        return self.ask(path, method=method, Authorization=f"Bearer {json.loads(granted.body)['token']}")


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """Give a server beside a Quay, and see to it that what is Quay's is at the end what it was."""
    kind, place = request.param
    with ExitStack() as stack:
        url = stack.enter_context(s3_server()) if place == "s3" else None
        dump = "sqlite" if kind == "sqlite" else "postgresql"
        there = stack.enter_context(quay(dump, tmp_path_factory.mktemp("quay"), s3=url))
        reached = stack.enter_context(beside(there)) if kind == "role" else there
        rows, blobs = there.rows(), there.blobs()
        file = there.folder / "quay.db"
        content = file.read_bytes() if kind == "sqlite" else b""
        running = stack.enter_context(served(reached.place))
        yield Side(reached, running.url)
        assert there.rows() == rows
        assert there.blobs() == blobs
        if kind == "sqlite":
            assert file.read_bytes() == content


def names(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return tar.getnames()


def tags(side: Side) -> list[tuple[str, str, str]]:
    """Return every repository, tag and digest that is known."""
    return [(name, tag, digest) for name, known in side.quay.facts["tags"].items() for tag, digest in known.items()]


# --- What there is ----------------------------------------------------------------------------------------------------


def test_every_tag_is_the_manifest_that_quay_says(side: Side) -> None:
    for name, tag, digest in tags(side):
        answer = side.manifest(name, tag, "alice")
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, digest), (name, tag)
        assert str(Digest.of(answer.body)) == digest
        assert side.manifest(name, digest, "alice").body == answer.body


@pytest.mark.parametrize("verb", VERBS)
def test_every_tag_of_an_image_comes_by_every_verb(side: Side, verb: str) -> None:
    known = [tag for name, tag, _ in tags(side) if name == "acme/app" and tag != "sbom"]
    for name in (*(f"acme/app:{tag}" for tag in known), "acme/open:latest", "acme/open:docker", "alice/legacy:latest"):
        answer = side.image(name, "alice", verb)
        if verb == "wsl" and "etc/passwd" not in names(side.image(name, "alice").body):
            assert (answer.status, answer.error["code"]) == (422, "WSL_INEXPRESSIBLE")
            continue
        assert answer.status == 200, (name, answer.body)
        assert answer.body


@pytest.mark.parametrize("tag", ["v1", "v2", "arm", "moved"])
def test_a_rootfs_is_what_umoci_unpacks(side: Side, tmp_path: Path, tag: str) -> None:
    host = side.url.removeprefix("http://")
    login = f"--src-creds=alice:{side.quay.password('alice')}"
    layout, unpacked = f"{tmp_path}/layout:{tag}", tmp_path / "unpacked"
    source = f"docker://{host}/acme/app:{tag}"
    run("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", login, source, f"oci:{layout}")
    run("umoci", "raw", "unpack", "--image", layout, str(unpacked))
    with tarfile.open(fileobj=io.BytesIO(side.image(f"acme/app:{tag}", "alice").body)) as tar:
        found = {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}
    assert found == {
        str(file.relative_to(unpacked)): file.read_bytes() for file in unpacked.rglob("*") if file.is_file()
    }
    assert found


def test_skopeo_pulls_every_tag(side: Side, tmp_path: Path) -> None:
    host = side.url.removeprefix("http://")
    login = f"--src-creds=alice:{side.quay.password('alice')}"
    pulled = [(name, tag, digest) for name, tag, digest in tags(side)]
    for at, (name, tag, digest) in enumerate(pulled):
        folder = tmp_path / str(at)
        run(
            "skopeo",
            "--insecure-policy",
            "copy",
            "--all",
            "--src-tls-verify=false",
            login,
            f"docker://{host}/{name}:{tag}",
            f"dir:{folder}",
        )
        assert str(Digest.of((folder / "manifest.json").read_bytes())) == digest


def test_an_ended_tag_is_not_there(side: Side) -> None:
    for name, ended in side.quay.facts["ended_tags"].items():
        for tag in ended:
            assert side.image(f"{name}:{tag}", "alice").status == 404
            assert side.manifest(name, tag, "alice").status == 404
            listed = side.v2(f"/v2/{name}/tags/list", f"repository:{name}:pull", _login(side, "alice"))
            assert tag not in json.loads(listed.body)["tags"]


def test_the_tags_are_those_that_quay_says(side: Side) -> None:
    listed = side.v2("/v2/acme/app/tags/list", "repository:acme/app:pull", _login(side, "alice"))
    assert json.loads(listed.body)["tags"] == sorted(side.quay.facts["tags"]["acme/app"])


@pytest.mark.parametrize("who", [None, "alice", "dave"])
def test_a_repository_that_is_marked_for_deletion_is_not_there(side: Side, who: str | None) -> None:
    for name in side.quay.facts["marked_for_deletion"]:
        gone, never = (side.image(f"{each}:latest", who) for each in (name, "acme/never-was"))
        assert gone.status in (401, 403, 404)
        assert gone.status == never.status
        assert side.manifest(name, "latest", who).status in (401, 403, 404)
    catalog = side.v2("/v2/_catalog", "registry:catalog:*", _login(side, "alice"))
    assert not set(side.quay.facts["marked_for_deletion"]) & set(json.loads(catalog.body)["repositories"])


def test_what_is_read_only_or_a_mirror_is_pulled(side: Side) -> None:
    for name in (*side.quay.facts["read_only"], *side.quay.facts["mirror"]):
        assert side.image(f"{name}:latest", "alice").status == 200
        assert side.manifest(name, "latest", "alice").status == 200


@pytest.mark.parametrize("name", ["acme/app", "acme/frozen", "acme/mirrored", "acme/new"])
def test_nothing_is_pushed_to_a_quay(side: Side, name: str) -> None:
    for path, method in ((f"/v2/{name}/blobs/uploads/", "POST"), (f"/v2/{name}/manifests/latest", "DELETE")):
        answer = side.v2(path, f"repository:{name}:pull,push,delete", _login(side, "alice"), method)
        assert (answer.status, answer.error["code"]) == (405, "UNSUPPORTED")


def test_an_artifact_is_pulled_and_is_no_image(side: Side) -> None:
    for verb in VERBS:
        answer = side.image("acme/app:sbom", "alice", verb)
        assert answer.status == 415, answer.body
        assert "acme/app" in answer.error["message"] or "artifact" in answer.error["message"]
    document = json.loads(side.manifest("acme/app", "sbom", "alice").body)
    (layer,) = document["layers"]
    blob = side.v2(f"/v2/acme/app/blobs/{layer['digest']}", "repository:acme/app:pull", _login(side, "alice"))
    assert str(Digest.of(blob.body)) == layer["digest"]


def test_an_index_has_two_platforms(side: Side) -> None:
    arm, amd = (
        side.image("acme/app:multi", "alice", query=f"?platform={platform}")
        for platform in ("linux/arm64", "linux/amd64")
    )
    assert (arm.status, amd.status) == (200, 200)
    assert arm.body == side.image("acme/app:arm", "alice", query="?platform=linux/arm64").body
    assert amd.body == side.image("acme/app:v2", "alice").body
    assert arm.body != amd.body
    other = side.image("acme/app:multi", "alice", query="?platform=linux/s390x")
    assert other.status == 404
    assert "linux/arm64" in other.error["message"]


def test_a_blob_that_is_not_stored_under_its_digest_is_found(side: Side) -> None:
    answer = side.image("alice/older:latest", "alice")
    assert (answer.status, len(names(answer.body)) > 0) == (200, True)
    layer = json.loads(side.manifest("alice/older", "latest", "alice").body)["layers"][0]["digest"]
    blob = side.v2(f"/v2/alice/older/blobs/{layer}", "repository:alice/older:pull", _login(side, "alice"))
    assert str(Digest.of(blob.body)) == layer


# --- What a proxy cache leaves ----------------------------------------------------------------------------------------

PROXIED = "hub/library/alpine"


def test_a_layer_that_the_proxy_cache_has_not_fetched_is_named(side: Side) -> None:
    answer = side.image(f"{PROXIED}:latest", "alice")
    assert (answer.status, answer.error["code"]) == (502, "BLOB_NOT_FOUND")
    assert "sha256:4844d13d25e1a66057bdbfdd0a17b69d0276981e9de18f1d4db9d052dca8defd" in answer.error["message"]
    assert "hub is a cache of docker.io" in answer.error["message"]


def test_a_manifest_that_the_proxy_cache_has_not_fetched_is_named(side: Side) -> None:
    digest = f"sha256:{'5' * 64}"
    answer = side.image(f"{PROXIED}:latest", "alice", query="?platform=linux/arm64")
    assert (answer.status, answer.error["code"]) == (502, "MANIFEST_NOT_FETCHED")
    assert digest in answer.error["message"]
    assert "hub is a cache of docker.io" in answer.error["message"]
    pulled = side.manifest(PROXIED, digest, "alice")
    assert (pulled.status, pulled.error["code"]) == (502, "MANIFEST_UNKNOWN")


def test_what_the_proxy_cache_has_is_pulled_and_what_it_lacks_is_named(side: Side) -> None:
    index = side.manifest(PROXIED, "latest", "alice")
    assert index.status == 200
    (amd64,) = (
        each["digest"] for each in json.loads(index.body)["manifests"] if each["platform"]["architecture"] == "amd64"
    )
    image = json.loads(side.manifest(PROXIED, amd64, "alice").body)
    scope = f"repository:{PROXIED}:pull"
    config = side.v2(f"/v2/{PROXIED}/blobs/{image['config']['digest']}", scope, _login(side, "alice"))
    assert (config.status, str(Digest.of(config.body))) == (200, image["config"]["digest"])
    for layer in image["layers"]:
        absent = side.v2(f"/v2/{PROXIED}/blobs/{layer['digest']}", scope, _login(side, "alice"))
        assert (absent.status, absent.error["code"]) == (502, "BLOB_UNKNOWN")
        assert layer["digest"] in absent.error["message"]


# --- Who may read what ------------------------------------------------------------------------------------------------


def _login(side: Side, who: str) -> tuple[str, str]:
    return who, side.quay.password(who)


def test_who_may_read_is_as_quay_says(side: Side) -> None:
    for name, said in side.quay.facts["may_read"].items():
        if name == "not":
            continue
        for who in (each.split(" ")[0] for each in said):
            assert side.image(f"{name}:v1", who).status == 200, who
            assert side.manifest(name, "v1", who).status == 200, who


def test_who_may_not_read_is_as_quay_says(side: Side) -> None:
    for name in (name for name in side.quay.facts["may_read"] if name != "not"):
        assert side.image(f"{name}:v1", "alice+ci").status == 403
        assert side.manifest(name, "v1", "alice+ci").status in (401, 403)
        assert side.image(f"{name}:v1").status == 401
        assert side.manifest(name, "v1").status == 401
        nobody = side.ask(f"/c1/rootfs/{name}/v1", login=("erin", "anything"))
        assert nobody.status in (401, 429)


def test_a_public_repository_is_everybody_s(side: Side) -> None:
    for name in side.quay.facts["public"]:
        for who in (None, "bob", "alice+ci"):
            assert side.image(f"{name}:latest", who).status == 200
            assert side.manifest(name, "latest", who).status == 200


def test_a_disabled_user_does_not_come_in(side: Side) -> None:
    for who in side.quay.facts["disabled_users"]:
        assert side.image("acme/open:latest", who).status == 401
        assert side.ask("/v2/auth", who).status == 401


def test_a_user_without_a_password_has_none(side: Side) -> None:
    for who in side.quay.facts["federated_users_without_a_password"]:
        answers = [side.ask("/c1/rootfs/acme/open/latest", login=(who, each)).status for each in ("", "None", "{}")]
        assert set(answers) <= {401, 429}


def test_the_catalog_has_what_each_may_read(side: Side) -> None:
    catalog = side.v2("/v2/_catalog", "registry:catalog:*", _login(side, "bob"))
    # Without FEATURE_PUBLIC_CATALOG those that are only public are left out: quay/quay, endpoints/v2/catalog.py.
    assert json.loads(catalog.body)["repositories"] == ["acme/app"]


# --- The command line -------------------------------------------------------------------------------------------------


def _command(side: Side, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, "-c", "import app; app.main()", *arguments]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin", **side.quay.place.configuration}
    return subprocess.run(program, env=environment, capture_output=True, check=False)


def test_the_command_line_writes_what_http_sends(side: Side) -> None:
    for name in ("acme/app:v1", "alice/older:latest", "acme/frozen:latest"):
        done = _command(side, "derive", "rootfs", name)
        assert (done.returncode, done.stdout) == (0, side.image(name, "alice").body), done.stderr


def test_the_command_line_names_what_is_not_there(side: Side) -> None:
    for name, said in (
        ("acme/app:old", b"acme/app has no tag 'old'"),
        ("acme/gone:latest", b"there is no repository acme/gone"),
        ("acme/app:sbom", b"artifact"),
        (f"{PROXIED}:latest", b"hub is a cache of docker.io"),
    ):
        done = _command(side, "derive", "rootfs", name)
        assert (done.returncode, done.stdout) == (1, b"")
        assert said in done.stderr, done.stderr


def test_the_command_line_changes_nothing_of_quay_s(side: Side) -> None:
    (side.quay.folder / "layout").mkdir(exist_ok=True)
    for arguments in (
        ("import", f"oci:{side.quay.folder}/layout", "acme/app:new"),
        ("user", "create", "mallory"),
        ("org", "create", "mallory"),
        ("repo", "create", "acme/new"),
    ):
        done = _command(side, *arguments)
        assert done.returncode != 0, arguments
        assert b"Traceback" not in done.stderr, done.stderr
    assert _command(side, "gc").returncode == 0
