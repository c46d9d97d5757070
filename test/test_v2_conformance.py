"""A walk through the distribution-spec 1.1, as its conformance suite goes: pull, push, discovery, management.

The law: one server and one repository for all of it; the client knows the specification and nothing else, gets a token
where it is told to, and goes where a Location or a Link sends it. What each test is about is pushed, looked for, had,
listed and deleted again, so that nothing of it is left for the next one.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import pytest
import requests

from test.images import CONFIG, INDEX, LAYER, MANIFEST
from test.manifests import EMPTY, artifact, described, image, index, written
from test.people import PASSWORD
from test.server import served
from test.test_pushing import a_place
from util.digest import Digest

ALGORITHMS = ("sha256", "sha512", "blake3")
EXAMPLE = "application/vnd.example.thing.v1"
OTHER = "application/vnd.example.other.v1"
ANNOTATIONS = {"org.example.greeting": "hello"}
ONE, TWO = "acme/one", "acme/two"
CHUNK = 1024

_bytes = random.Random(0).randbytes
_unique = count()


class Client:
    """A client of one registry: it asks, and where it is told to get a token it does, and asks again."""

    def __init__(self, url: str) -> None:
        self.url, self._session = url, requests.Session()
        self._tokens: dict[str, str] = {}

    def ask(self, method: str, path: str, wanted: int | tuple[int, ...], /, **more: Any) -> requests.Response:
        """Return the answer, whose status is one that is `wanted`."""
        headers = more.pop("headers", {})
        for _ in range(2):
            answer = self._session.request(
                method, urljoin(self.url, path), timeout=300, headers={**headers, **self._known(path)}, **more
            )
            if answer.status_code != 401:
                break
            self._log_in(path, answer.headers["WWW-Authenticate"])
        statuses = (wanted,) if isinstance(wanted, int) else wanted
        assert answer.status_code in statuses, (method, path, answer.status_code, answer.text)
        if answer.status_code >= 400 and method != "HEAD":
            check_errors(answer)
        assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        return answer

    def _known(self, path: str) -> dict[str, str]:
        token = self._tokens.get(_repository(path))
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _log_in(self, path: str, challenge: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        assert scheme == "Bearer"
        said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        repository = _repository(path)
        scopes = [said["scope"]] if "scope" in said else []
        if repository:  # as a client does that will do all of it
            scopes += [f"repository:{ONE}:*", f"repository:{TWO}:*"]
        answer = self._session.get(
            said["realm"], params={"service": said["service"], "scope": scopes}, auth=("acme", PASSWORD), timeout=300
        )
        self._tokens[repository] = answer.json()["token"]


def _repository(path: str) -> str:
    match = re.search(r"/v2/(.+?)/(?:blobs|manifests|tags|referrers)/", path)
    return match[1] if match else ""


CODES = {
    *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
    *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
    *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}


def check_errors(answer: requests.Response) -> None:
    """Error Codes: the form of an error, and the codes that there are."""
    assert answer.headers["Content-Type"] == "application/json"
    errors = answer.json()["errors"]
    assert errors
    for each in errors:
        assert each["code"] in CODES
        assert isinstance(each["message"], str)


def with_query(location: str, **more: str) -> str:
    """Return a Location with more in its query, whatever is in it already."""
    parts = urlsplit(location)
    return parts._replace(query=urlencode([*parse_qsl(parts.query), *more.items()])).geturl()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tmp_path_factory.mktemp("registry")
    with served(a_place(folder), workers=2) as running:
        client = Client(running.url)
        for name in (ONE, TWO):
            content = index([])
            client.ask("PUT", f"/v2/{name}/manifests/begun", 201, data=content, headers={"Content-Type": INDEX})
            client.ask("DELETE", f"/v2/{name}/manifests/begun", 202)
        yield client


# --- Blobs ------------------------------------------------------------------------------------------------------------


def begin(client: Client, query: str = "", name: str = ONE) -> str:
    answer = client.ask("POST", f"/v2/{name}/blobs/uploads/{query}", 202, headers={"Content-Length": "0"})
    return str(answer.headers["Location"])


def bytewise(content: bytes, first: int, last: int) -> dict[str, Any]:
    """Return what a chunk is sent with; `last` is its last byte."""
    headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{first}-{last}"}
    return {"data": content[first : last + 1], "headers": headers}


def post_only(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    kind = {"Content-Type": "application/octet-stream"}
    return client.ask("POST", f"/v2/{ONE}/blobs/uploads/?digest={digest}", wanted, data=content, headers=kind)


def post_put(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    kind = {"Content-Type": "application/octet-stream"}
    return client.ask("PUT", with_query(begin(client), digest=digest), wanted, data=content, headers=kind)


def announced(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    location = begin(client, f"?digest-algorithm={digest.partition(':')[0]}")
    return client.ask("PUT", with_query(location, digest=digest), wanted, data=content)


def stream(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    kind = {"Content-Type": "application/octet-stream"}
    answer = client.ask("PATCH", begin(client), 202, data=iter([content[:100], content[100:]]), headers=kind)
    return client.ask("PUT", with_query(answer.headers["Location"], digest=digest), wanted)


def chunks(
    client: Client, content: bytes, digest: str, wanted: int = 201, *, last_by_put: bool = False, disorder: bool = False
) -> requests.Response:
    location, first = begin(client), 0
    while first < len(content):
        last = min(first + CHUNK, len(content)) - 1
        at_end = last == len(content) - 1
        if disorder:
            location = out_of_order(client, content, digest, location, first=first, put=at_end and last_by_put)
        if at_end and last_by_put:
            return client.ask("PUT", with_query(location, digest=digest), wanted, **bytewise(content, first, last))
        answer = client.ask("PATCH", location, 202, **bytewise(content, first, last))
        assert answer.headers["Range"] == f"0-{last}"
        location, first = answer.headers["Location"], last + 1
    return client.ask("PUT", with_query(location, digest=digest), wanted)


def out_of_order(client: Client, content: bytes, digest: str, location: str, *, first: int, put: bool) -> str:
    """Send a chunk that is not the next one, and return where to go on, as the status says."""
    wrong = first + CHUNK if first + CHUNK < len(content) else 0
    chunk = bytewise(content, wrong, min(wrong + CHUNK, len(content)) - 1)
    if put:
        client.ask("PUT", with_query(location, digest=digest), 416, **chunk)
    else:
        client.ask("PATCH", location, 416, **chunk)
    answer = client.ask("GET", location, 204)
    assert answer.headers["Range"] == f"0-{max(first - 1, 0)}"
    return str(answer.headers["Location"])


def chunk_by_put(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    return chunks(client, content, digest, wanted, last_by_put=True)


def disordered(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    return chunks(client, content, digest, wanted, disorder=True)


def disordered_by_put(client: Client, content: bytes, digest: str, wanted: int = 201) -> requests.Response:
    return chunks(client, content, digest, wanted, last_by_put=True, disorder=True)


FEW = (post_only, announced, stream)
WAYS = [
    *((way, "sha256") for way in (*FEW, post_put, chunks, chunk_by_put, disordered, disordered_by_put)),
    *((way, algorithm) for way in FEW for algorithm in ALGORITHMS[1:]),
]


def check_blob(client: Client, content: bytes, digest: str, name: str = ONE) -> None:
    """Pulling blobs; Checking if content exists in the registry."""
    for method in ("HEAD", "GET"):
        answer = client.ask(method, f"/v2/{name}/blobs/{digest}", 200)
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["Content-Length"] == str(len(content))
        assert answer.content == (content if method == "GET" else b"")


def delete_blob(client: Client, digest: str, name: str = ONE) -> None:
    """Deleting Blobs."""
    client.ask("DELETE", f"/v2/{name}/blobs/{digest}", 202)
    for method in ("HEAD", "GET", "DELETE"):
        client.ask(method, f"/v2/{name}/blobs/{digest}", 404)


@pytest.mark.parametrize(("way", "algorithm"), WAYS)
def test_a_blob_is_pushed(client: Client, way: Callable[..., requests.Response], algorithm: str) -> None:
    content = _bytes(3 * CHUNK - 5)
    digest = str(Digest.of(content, algorithm))
    client.ask("GET", f"/v2/{ONE}/blobs/{digest}", 404)
    answer = way(client, content, digest)
    assert answer.headers["Docker-Content-Digest"] == digest
    assert client.ask("GET", answer.headers["Location"], 200).content == content
    check_blob(client, content, digest)
    delete_blob(client, digest)


@pytest.mark.parametrize(("way", "algorithm"), WAYS)
def test_a_blob_with_another_digest_is_refused(
    client: Client, way: Callable[..., requests.Response], algorithm: str
) -> None:
    content = _bytes(3 * CHUNK - 5)
    digest = str(Digest.of(content, algorithm))
    way(client, content + b"oh no", digest, 400)
    client.ask("HEAD", f"/v2/{ONE}/blobs/{digest}", 404)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("content", [b"", b"{}"])
@pytest.mark.parametrize("way", FEW)
def test_a_blob_that_everybody_has(
    client: Client, way: Callable[..., requests.Response], content: bytes, algorithm: str
) -> None:
    digest = str(Digest.of(content, algorithm))
    way(client, content, digest)
    check_blob(client, content, digest)
    delete_blob(client, digest)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("query", [f"&from={TWO}", ""])
def test_a_blob_is_mounted(client: Client, query: str, algorithm: str) -> None:
    content = _bytes(512)
    digest = str(Digest.of(content, algorithm))
    client.ask("PUT", with_query(begin(client, name=TWO), digest=digest), 201, data=content)
    client.ask("GET", f"/v2/{ONE}/blobs/{digest}", 404)
    answer = client.ask("POST", f"/v2/{ONE}/blobs/uploads/?mount={digest}{query}", 201)
    assert answer.headers["Docker-Content-Digest"] == digest
    assert client.ask("GET", answer.headers["Location"], 200).content == content
    check_blob(client, content, digest)
    delete_blob(client, digest)
    check_blob(client, content, digest, TWO)
    delete_blob(client, digest, TWO)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_cannot_be_mounted_is_uploaded(client: Client, algorithm: str) -> None:
    content = _bytes(512)
    digest = str(Digest.of(content, algorithm))
    answer = client.ask("POST", f"/v2/{ONE}/blobs/uploads/?mount={digest}&from={TWO}", 202)
    client.ask("PUT", with_query(answer.headers["Location"], digest=digest), 201, data=content)
    check_blob(client, content, digest)
    delete_blob(client, digest)


def test_an_upload_is_cancelled(client: Client) -> None:
    location = begin(client)
    client.ask("PATCH", location, 202, **bytewise(b"0123456789", 0, 9))
    client.ask("DELETE", location, 204)
    for method in ("GET", "DELETE", "PATCH"):
        client.ask(method, location, 404)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parts_of_a_blob(client: Client, algorithm: str) -> None:
    content = _bytes(2048)
    digest = str(Digest.of(content, algorithm))
    post_put(client, content, digest)
    for asked, first, last in (
        ("500-1499", 500, 1499),
        ("500-", 500, 2047),
        ("-500", 1548, 2047),
        ("2000-5000", 2000, 2047),
    ):
        answer = client.ask("GET", f"/v2/{ONE}/blobs/{digest}", 206, headers={"Range": f"bytes={asked}"})
        assert answer.content == content[first : last + 1]
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/2048"
        assert answer.headers["Content-Length"] == str(last - first + 1)
    for asked in ("500-0", "5000-10000"):
        client.ask("GET", f"/v2/{ONE}/blobs/{digest}", 416, headers={"Range": f"bytes={asked}"})
    delete_blob(client, digest)


@pytest.mark.parametrize("digest", ["sha256:baddigeststring", "sha256", "md5:" + "0" * 32, "sha256:" + "A" * 64])
def test_a_digest_that_is_none_is_refused(client: Client, digest: str) -> None:
    client.ask("POST", f"/v2/{ONE}/blobs/uploads/?digest={digest}", 400, data=b"one")
    client.ask("PUT", with_query(begin(client), digest=digest), 400, data=b"one")
    client.ask("GET", f"/v2/{ONE}/blobs/{digest}", (400, 404))
    client.ask("GET", f"/v2/{ONE}/referrers/{digest}", 400)
    if ":" in digest:
        client.ask("PUT", f"/v2/{ONE}/manifests/{digest}", 400, data=index([]), headers={"Content-Type": INDEX})
        client.ask("GET", f"/v2/{ONE}/manifests/{digest}", (400, 404))


# --- What is pushed ---------------------------------------------------------------------------------------------------


@dataclass
class Content:
    """Blobs, and the manifests that name them, in the order in which they are pushed.

    `tags` lead to digests; `referrers` are the digests of those whose subject the key is.
    """

    algorithm: str = "sha256"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    referrers: dict[str, list[str]] = field(default_factory=dict)

    def blob(self, content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Return the descriptor of a blob, which is pushed."""
        descriptor = described(content, media_type, algorithm=self.algorithm, **more)
        self.blobs[descriptor["digest"]] = content
        return descriptor

    def manifest(self, content: bytes, *tags: str) -> dict[str, Any]:
        """Return the descriptor of a manifest, which is pushed and has `tags`."""
        document = json.loads(content)
        descriptor = described(content, document["mediaType"], algorithm=self.algorithm)
        self.manifests[descriptor["digest"]] = content
        self.tags |= dict.fromkeys(tags, descriptor["digest"])
        if "subject" in document:
            self.referrers.setdefault(document["subject"]["digest"], []).append(descriptor["digest"])
        return descriptor

    def image(self, *tags: str, layers: Iterable[Mapping[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
        """Return the descriptor of an image that nobody has yet, with two layers if it is not said which."""
        config = written({"os": "linux", "architecture": "amd64", "config": {"Env": [f"N={next(_unique)}"]}})
        named = [self.blob(_bytes(300), LAYER + "+gzip") for _ in range(2)] if layers is None else list(layers)
        return self.manifest(image(config=self.blob(config, CONFIG), **{"layers": named, **more}), *tags)

    def artifact(self, *tags: str, kind: str | None = EXAMPLE, **more: Any) -> dict[str, Any]:
        """Return the descriptor of an artifact that nobody has yet."""
        fields = {"config": self.blob(b"{}", EMPTY), "layers": [self.blob(_bytes(64), EXAMPLE)], **more}
        return self.manifest(artifact(kind, **fields), *tags)

    def index(self, *tags: str, entries: Iterable[Mapping[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
        """Return the descriptor of an index, of two images if it is not said of what."""
        named = [self.image(), self.image()] if entries is None else entries
        return self.manifest(index(named, **more), *tags)


def an_image() -> Content:
    content = Content()
    content.image("image")
    return content


def an_uncompressed_image() -> Content:
    content = Content()
    content.image("image", layers=[content.blob(_bytes(10_000), LAYER)])
    return content


def a_large_manifest() -> Content:
    content = Content()
    content.image("large", annotations={f"large-annotation-{at}": "A" * 10_000 for at in range(390)})
    return content


def an_index() -> Content:
    content = Content()
    content.index("index")
    return content


def a_nested_index() -> Content:
    content = Content()
    content.index("nested", entries=[content.index(), content.index()])
    return content


def an_empty_index() -> Content:
    content = Content()
    content.index("empty", entries=[])
    return content


def an_artifact() -> Content:
    content = Content()
    content.artifact("artifact")
    return content


def an_artifact_without_layers() -> Content:
    content = Content()
    content.artifact("artifact", layers=[content.blob(b"{}", EMPTY)])
    content.artifact("nothing", layers=[], annotations={"n": str(next(_unique))})
    return content


def an_artifact_index() -> Content:
    content = Content()
    content.index("artifacts", entries=[content.artifact(), content.artifact()], artifactType=EXAMPLE)
    return content


def artifacts_with_a_subject() -> Content:
    content = Content()
    subject = content.image("image")
    content.image(subject=subject)
    content.artifact("first", subject=subject, annotations=ANNOTATIONS)
    content.artifact("second", subject=subject, kind=OTHER, annotations=ANNOTATIONS)
    content.artifact(subject=subject, kind=None, config=content.blob(b"[]", OTHER))
    return content


def indexes_with_a_subject() -> Content:
    content = Content()
    subject = content.index("index")
    content.index(
        "artifacts", entries=[content.artifact()], subject=subject, artifactType=EXAMPLE, annotations={"a": "b"}
    )
    content.index(entries=[content.image()], subject=subject)
    return content


def a_subject_that_is_missing() -> Content:
    content = Content()
    content.artifact("tagged", subject=described(b"missing content", MANIFEST), annotations=ANNOTATIONS)
    return content


def a_subject_that_comes_later() -> Content:
    later, content = Content(), Content()
    subject = later.image("image")
    content.artifact(subject=subject)
    content.blobs |= later.blobs
    content.manifests |= later.manifests
    content.tags |= later.tags
    return content


def data_in_descriptors() -> Content:
    content = Content()
    content.artifact("data", config=content.blob(b"{}", EMPTY, data="e30="))
    return content


def layers_from_elsewhere() -> Content:
    content, kind = Content(), "application/vnd.oci.image.layer.nondistributable.v1.tar"
    urls = ["https://store.example.com/blobs"]
    elsewhere = [described(_bytes(9), kind + suffix, urls=urls) for suffix in ("", "+gzip")]
    content.image("elsewhere", layers=[*elsewhere, content.blob(_bytes(300), LAYER)])
    return content


def fields_that_nobody_knows() -> Content:
    content = Content()
    inside = content.manifest(image(config=content.blob(b"{}", CONFIG), unknown={"a": [1, None]}))
    content.index("custom", entries=[inside], unknown="b")
    return content


def an_image_without_layers() -> Content:
    content = Content()
    content.image("no-layers", layers=[])
    return content


def another_algorithm(algorithm: str) -> Content:
    content = Content(algorithm)
    content.index("other", "another")
    return content


def a_cache() -> Content:
    """BuildKit's cache as an image, and as an index of layers."""
    content, kind = Content(), "application/vnd.buildkit.cacheconfig.v0"
    layer = content.blob(_bytes(300), LAYER + "+zstd", annotations={"buildkit/createdat": "2026"})
    content.manifest(image(config=content.blob(b'{"layers":[]}', kind), layers=[layer]), "cache")
    content.index("old-cache", entries=[layer, content.blob(b'{"records":[]}', kind)])
    return content


def an_image_with_attestations() -> Content:
    content = Content()
    of = content.image()
    told = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of["digest"]}
    statement = content.blob(b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json")
    unknown = {"os": "unknown", "architecture": "unknown"}
    attestation = {**content.image(layers=[statement]), "platform": unknown, "annotations": told}
    content.index("attested", entries=[{**of, "platform": {"os": "linux", "architecture": "amd64"}}, attestation])
    return content


KINDS: dict[str, Callable[[], Content]] = {
    each.__name__: each
    for each in (
        an_image,
        an_uncompressed_image,
        a_large_manifest,
        an_index,
        a_nested_index,
        an_empty_index,
        an_artifact,
        an_artifact_without_layers,
        an_artifact_index,
        artifacts_with_a_subject,
        indexes_with_a_subject,
        a_subject_that_is_missing,
        a_subject_that_comes_later,
        data_in_descriptors,
        layers_from_elsewhere,
        fields_that_nobody_knows,
        an_image_without_layers,
        a_cache,
        an_image_with_attestations,
    )
}
KINDS |= {algorithm: partial(another_algorithm, algorithm) for algorithm in ALGORITHMS}


# --- The walk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_is_pushed_had_listed_and_deleted(client: Client, kind: str) -> None:
    content = KINDS[kind]()
    for digest, blob in content.blobs.items():
        post_put(client, blob, digest)
    push(client, content)
    check_tags(client, content)
    check_manifests(client, content)
    for subject, referring in content.referrers.items():
        check_referrers(client, subject, [(digest, content.manifests[digest]) for digest in referring])
    delete(client, content)


def push(client: Client, content: Content) -> None:
    """Pushing Manifests: by digest, with `tag` in the query by turns, and then by tag."""
    for digest, manifest in content.manifests.items():
        tags = [tag for tag, leads_to in content.tags.items() if leads_to == digest]
        with_digest = tags if content.algorithm != "sha256" else tags[1:]
        check_push(client, digest, manifest, digest, params=[("tag", tag) for tag in with_digest])
        for tag in tags[: len(tags) - len(with_digest)]:
            check_push(client, tag, manifest, digest)


def check_push(client: Client, reference: str, manifest: bytes, digest: str, **more: Any) -> None:
    document = json.loads(manifest)
    kind = {"Content-Type": document["mediaType"]}
    answer = client.ask("PUT", f"/v2/{ONE}/manifests/{reference}", 201, data=manifest, headers=kind, **more)
    assert answer.headers["Docker-Content-Digest"] == digest
    assert answer.headers.get("OCI-Subject") == document.get("subject", {}).get("digest")
    told = [tag.strip() for tag in answer.headers.get("OCI-Tag", "").split(",") if tag]
    assert told == [tag for _, tag in more.get("params", [])]
    assert client.ask("GET", answer.headers["Location"], 200).content == manifest


def check_manifests(client: Client, content: Content) -> None:
    """Pulling manifests; Checking if content exists in the registry."""
    accept = {"Accept": f"{INDEX}, {MANIFEST}"}
    for reference, digest in (*content.tags.items(), *((digest, digest) for digest in content.manifests)):
        manifest = content.manifests[digest]
        for method in ("HEAD", "GET"):
            answer = client.ask(method, f"/v2/{ONE}/manifests/{reference}", 200, headers=accept)
            assert answer.headers["Docker-Content-Digest"] == digest
            assert answer.headers["Content-Type"] == json.loads(manifest)["mediaType"]
            assert answer.headers["Content-Length"] == str(len(manifest))
            assert answer.content == (manifest if method == "GET" else b"")


def check_tags(client: Client, content: Content) -> None:
    """Listing Tags: all, behind `last`, and page by page."""
    listed = client.ask("GET", f"/v2/{ONE}/tags/list", 200).json()
    assert listed == {"name": ONE, "tags": sorted(content.tags)}
    for at, tag in enumerate(listed["tags"]):
        behind = client.ask("GET", f"/v2/{ONE}/tags/list?last={tag}", 200).json()["tags"]
        assert behind == listed["tags"][at + 1 :]
        one = client.ask("GET", f"/v2/{ONE}/tags/list?n=1&last={tag}", 200)
        assert one.json()["tags"] == listed["tags"][at + 1 : at + 2]
    nothing = client.ask("GET", f"/v2/{ONE}/tags/list?n=0", 200)
    assert (nothing.json()["tags"], "Link" in nothing.headers) == ([], False)
    pages, url = [], f"/v2/{ONE}/tags/list?n=1"
    while url:
        answer = client.ask("GET", url, 200)
        pages += answer.json()["tags"]
        url = answer.links.get("next", {}).get("url", "")
    assert pages == listed["tags"]


def check_referrers(client: Client, subject: str, referring: list[tuple[str, bytes]]) -> None:
    """Listing Referrers: all, and by each of their types."""
    wanted = {digest: shown(digest, manifest) for digest, manifest in referring}
    assert listed_referrers(client, subject) == wanted
    for kind in {each.get("artifactType") for each in wanted.values()} - {None}:
        same = {digest: each for digest, each in wanted.items() if each.get("artifactType") == kind}
        assert listed_referrers(client, subject, str(kind)) == same
    assert listed_referrers(client, subject, "application/vnd.example.nothing") == {}
    assert listed_referrers(client, str(Digest.of(subject.encode()))) == {}


def shown(digest: str, manifest: bytes) -> dict[str, Any]:
    """Return the descriptor by which a list of referrers shows a manifest."""
    document = json.loads(manifest)
    kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
    known = {"artifactType": kind, "annotations": document.get("annotations")}
    return {
        "mediaType": document["mediaType"],
        "digest": digest,
        "size": len(manifest),
        **{name: value for name, value in known.items() if value},
    }


def listed_referrers(client: Client, subject: str, kind: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    params = {} if kind is None else {"artifactType": kind}
    url = f"/v2/{ONE}/referrers/{subject}"
    while url:
        answer = client.ask("GET", url, 200, params=params)
        assert answer.headers["Content-Type"] == INDEX
        assert answer.headers.get("OCI-Filters-Applied") == (None if kind is None else "artifactType")
        document = answer.json()
        assert (document["schemaVersion"], document["mediaType"]) == (2, INDEX)
        found |= {each["digest"]: each for each in document["manifests"]}
        url, params = answer.links.get("next", {}).get("url", ""), {}
    return found


def delete(client: Client, content: Content) -> None:
    """Content Management: tags, then manifests, what holds others first; nothing is left that could be seen."""
    for tag in content.tags:
        client.ask("DELETE", f"/v2/{ONE}/manifests/{tag}", 202)
        client.ask("HEAD", f"/v2/{ONE}/manifests/{tag}", 404)
    for digest in reversed(content.manifests):
        client.ask("DELETE", f"/v2/{ONE}/manifests/{digest}", (202, 404))
        client.ask("HEAD", f"/v2/{ONE}/manifests/{digest}", 404)
    assert client.ask("GET", f"/v2/{ONE}/tags/list", 200).json()["tags"] == []
    for subject in content.referrers:
        assert listed_referrers(client, subject) == {}
    for digest in content.blobs:  # a deleted manifest keeps its own until it is collected
        client.ask("DELETE", f"/v2/{ONE}/blobs/{digest}", (202, 404, 405))


def test_referrers_that_a_client_lists_under_a_tag_are_listed(client: Client) -> None:
    """Enabling the Referrers API: clients of registries without it keep an index under a tag made of the digest."""
    content = Content()
    subject = content.image("image")
    content.index(subject["digest"].replace(":", "-"), entries=[content.artifact(subject=subject)])
    for digest, blob in content.blobs.items():
        post_put(client, blob, digest)
    push(client, content)
    (referring,) = content.referrers[subject["digest"]]
    check_referrers(client, subject["digest"], [(referring, content.manifests[referring])])
    delete(client, content)


# --- What is not there, and what cannot be ----------------------------------------------------------------------------


def test_who_is_logged_in_sees_that_this_is_a_registry(client: Client) -> None:
    assert client.ask("GET", "/v2/", 200).json() == {}


def test_a_repository_with_nothing_in_it(client: Client) -> None:
    assert client.ask("GET", f"/v2/{TWO}/tags/list", 200).json() == {"name": TWO, "tags": []}
    assert listed_referrers(client, str(Digest.of(b"nothing"))) == {}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("reference", ["missing", str(Digest.of(b"missing"))])
def test_a_manifest_that_is_missing(client: Client, method: str, reference: str) -> None:
    client.ask(method, f"/v2/{ONE}/manifests/{reference}", 404)
    client.ask(method, f"/v2/acme/missing/manifests/{reference}", 404)


def test_a_manifest_whose_parts_are_missing_names_them(client: Client) -> None:
    content = Content()
    content.image()
    digest, manifest = content.manifests.popitem()
    answer = client.ask("PUT", f"/v2/{ONE}/manifests/1", 400, data=manifest, headers={"Content-Type": MANIFEST})
    errors = answer.json()["errors"]
    assert {each["code"] for each in errors} == {"MANIFEST_BLOB_UNKNOWN"}
    assert {each["detail"]["digest"] for each in errors} == set(content.blobs)
    listed = index([described(manifest, MANIFEST)])
    answer = client.ask("PUT", f"/v2/{ONE}/manifests/1", 400, data=listed, headers={"Content-Type": INDEX})
    assert [(each["code"], each["detail"]["digest"]) for each in answer.json()["errors"]] == [
        ("MANIFEST_BLOB_UNKNOWN", digest)
    ]


def test_a_manifest_with_another_digest_is_refused(client: Client) -> None:
    for algorithm in ALGORITHMS:
        digest = Digest.of(b"other", algorithm)
        headers = {"Content-Type": INDEX}
        client.ask("PUT", f"/v2/{ONE}/manifests/{digest}", 400, data=index([]), headers=headers)


def test_a_manifest_over_the_limit_is_refused(client: Client) -> None:
    content = index([], annotations={"a": "b" * (5 << 20)})
    client.ask("PUT", f"/v2/{ONE}/manifests/1", 413, data=content, headers={"Content-Type": INDEX})


def test_a_proxy_s_namespace_is_ignored(client: Client) -> None:
    client.ask("PUT", f"/v2/{ONE}/manifests/1", 201, data=index([]), headers={"Content-Type": INDEX})
    assert client.ask("GET", f"/v2/{ONE}/manifests/1?ns=docker.io", 200).content == index([])
    client.ask("DELETE", f"/v2/{ONE}/manifests/1", 202)


def test_parameters_of_a_type_are_left_out(client: Client) -> None:
    kind = {"Content-Type": f"{INDEX}; charset=utf-8"}
    client.ask("PUT", f"/v2/{ONE}/manifests/1", 201, data=index([]), headers=kind)
    assert client.ask("GET", f"/v2/{ONE}/manifests/1", 200).headers["Content-Type"] == INDEX
    client.ask("DELETE", f"/v2/{ONE}/manifests/1", 202)
