"""Downloads that break off and are finished by clients that we did not write: of files, plans, makings; and nginx."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from test.clients import program
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.server import Running, curl, served
from test.waiting import eventually

IMAGE = Image([Layer([file(b"%d" % number, os.urandom(8 << 20))]) for number in range(3)])
ROOTFS = "/c1/rootfs/acme/app/1.0"
GZIP = "/c1/squash/acme/app/1.0"
RATE = "1M"
"""Bytes a second that a client takes until it is killed: it is killed long before the end."""

MANY = {"VERBS_MAX_MAKINGS": "64"}
"""More than there are clients: what one that was killed had begun may not have ended when the next one asks."""

Client = Callable[[str, Path, bool], list[str]]
"""What downloads a URL to a file: slowly, or what is missing of it."""


def curl_command(url: str, target: Path, again: bool) -> list[str]:
    more = ["-C", "-"] if again else ["--limit-rate", RATE]
    return [program("curl"), "-sSf", *more, "-H", named(target), "-o", str(target), url]


def wget_command(url: str, target: Path, again: bool) -> list[str]:
    more = ["-c"] if again else [f"--limit-rate={RATE}"]
    return [program("wget"), "-nv", *more, "--header", named(target), "-O", str(target), url]


def aria2_command(url: str, target: Path, again: bool) -> list[str]:
    options = ["--no-conf", "-q", "-x4", "-s4", "-k1M", "--file-allocation=none", "-d", str(target.parent)]
    more = ["-c"] if again else [f"--max-overall-download-limit={RATE}"]
    return [program("aria2c"), *options, *more, "--header", named(target), "-o", target.name, url]


def named(target: Path) -> str:
    """Return the header by which the audit's log knows a test's own requests."""
    return f"X-Request-ID: {target.parent.name}"


clients = pytest.mark.parametrize("client", [curl_command, wget_command, aria2_command])


def broken_off(command: list[str], target: Path) -> None:
    """Run a download, and end it in the middle."""
    with subprocess.Popen(command) as process:

        def far_enough() -> bool:
            assert process.poll() is None, "the download ended before it was broken off"
            return target.exists() and target.stat().st_blocks * 512 >= 300_000

        eventually(far_enough, pause=0.01)
        process.send_signal(signal.SIGINT)  # aria2 notes what it has


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    for tag in ("1.0", *(client.__name__ for client in (curl_command, wget_command, aria2_command))):
        place.push(f"acme/app:{tag}", IMAGE)
    return place


@pytest.fixture(scope="module")
def audit(place: Place) -> Path:
    return place.folder / "audit.jsonl"


@pytest.fixture(scope="module")
def running(place: Place, audit: Path) -> Iterator[Running]:
    with served(place, workers=2, more={"VERBS_AUDIT_LOG": str(audit), **MANY}) as running:
        yield running


@pytest.fixture(scope="module")
def readonly(place: Place, audit: Path) -> Iterator[Running]:
    """Return a server that keeps nothing: what it gives in part, it plans."""
    more = {"VERBS_AUDIT_LOG": str(audit), "REGISTRY_STATE": "readonly", **MANY}
    with served(place, workers=2, more=more) as running:
        yield running


def whole(running: Running, url: str) -> bytes:
    done = curl("-f", running.url + url)
    assert done.returncode == 0
    return done.stdout


def stored(running: Running, url: str) -> bytes:
    """Return what `url` gives once it is stored."""
    content = whole(running, url)
    eventually(lambda: b"repr-digest" in curl("-I", running.url + url).stdout.lower())
    return content


def ways(audit: Path, target: Path, *, answers: int) -> set[tuple[int, str]]:
    """Return the status and the way of each answer that a download had, after waiting for so many of them."""

    def own() -> list[tuple[int, str]]:
        lines = [json.loads(line) for line in audit.read_text().splitlines()]
        return [(line["status"], line["how"]) for line in lines if line["request_id"] == target.parent.name]

    eventually(lambda: len(own()) >= answers, what="there are fewer answers")
    return set(own())


def finished(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@clients
@pytest.mark.parametrize("url", [ROOTFS, GZIP])
def test_a_stored_image_is_finished(running: Running, audit: Path, tmp_path: Path, client: Client, url: str) -> None:
    content, target = stored(running, url), tmp_path / "image"
    broken_off(client(running.url + url, target, False), target)
    finished(client(running.url + url, target, True))
    assert target.read_bytes() == content
    assert ways(audit, target, answers=2) == {(200, "stored"), (206, "range")}


@clients
@pytest.mark.parametrize("url", [ROOTFS, f"{GZIP}?compression=none"])
def test_an_image_that_is_never_stored_is_finished(
    readonly: Running, audit: Path, tmp_path: Path, client: Client, url: str
) -> None:
    url = url.replace("/1.0", f"/{client.__name__}")  # of another name than what is stored
    content, target = whole(readonly, url), tmp_path / "image"
    broken_off(client(readonly.url + url, target, False), target)
    finished(client(readonly.url + url, target, True))
    assert target.read_bytes() == content
    seen = ways(audit, target, answers=2)
    assert {status for status, _ in seen} == {200, 206}
    if "rootfs" in url:
        assert (206, "planned") in seen


@clients
def test_an_image_whose_first_download_broke_off_is_finished(
    running: Running, readonly: Running, tmp_path: Path, client: Client
) -> None:
    url, target = f"/c1/aci/acme/app/{client.__name__}?compression=none", tmp_path / "image"
    broken_off(client(running.url + url, target, False), target)
    finished(client(running.url + url, target, True))
    assert target.read_bytes() == whole(readonly, url)


def test_the_checksum_beside_a_download_is_its_own(running: Running, tmp_path: Path) -> None:
    content = stored(running, GZIP)
    name = "acme_app_1.0-linux-amd64.tar.gz"
    done = subprocess.run([program("curl"), "-sfOJ", running.url + GZIP], cwd=tmp_path, check=False, timeout=300)
    assert done.returncode == 0
    assert (tmp_path / name).read_bytes() == content
    line = whole(running, f"{GZIP}.sha256")
    assert subprocess.run(["sha256sum", "--check"], input=line, cwd=tmp_path, check=False).returncode == 0


# --- Behind nginx -----------------------------------------------------------------------------------------------------

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen unix:{folder}/socket;
        location / {{
            proxy_pass {url};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
        }}
        location /internal/ {{
            internal;
            alias {storage}/;
            add_header ETag $upstream_http_etag;
            add_header Last-Modified $upstream_http_last_modified;
            add_header Repr-Digest $upstream_http_repr_digest;
            add_header X-Content-Type-Options nosniff;
            add_header X-Request-ID $upstream_http_x_request_id;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, running: Running) -> Iterator[Callable[..., tuple[dict[str, str], bytes]]]:
    """Run an nginx before the server; yield what asks it for a URL, and returns headers and body."""
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, url=running.url, storage=running.place.storage))
    socket = folder / "socket"

    def ask(url: str, *options: str) -> tuple[dict[str, str], bytes]:
        done = curl("-i", "--unix-socket", str(socket), *options, f"http://registry.example.com{url}")
        assert done.returncode == 0
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return {"status": status.split()[1], **headers}, body

    with subprocess.Popen([program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(configuration)]) as process:
        try:

            def listens() -> bool:
                assert process.poll() is None, (folder / "error.log").read_text()
                return socket.exists()

            eventually(listens)
            yield ask
        finally:
            process.terminate()


def test_nginx_sends_what_is_stored(place: Place, running: Running, tmp_path: Path) -> None:
    content = stored(running, ROOTFS)
    expected = curl("-I", running.url + ROOTFS).stdout.decode()
    more = {"VERBS_ACCEL_REDIRECT": "/internal/"}
    with served(place, more=more) as accelerated, nginx(tmp_path, accelerated) as ask:
        headers, body = ask(ROOTFS)
        assert (headers["status"], body) == ("200", content)
        assert headers["server"].startswith("nginx")
        for name in ("etag", "last-modified", "repr-digest", "content-type", "content-length", "content-disposition"):
            assert f": {headers[name]}\r\n" in expected
        assert "x-accel-redirect" not in headers
        assert ask(ROOTFS, "-H", f"If-None-Match: {headers['etag']}")[0]["status"] == "304"
        assert ask(ROOTFS, "-H", f"If-Modified-Since: {headers['last-modified']}")[0]["status"] == "304"
        part, body = ask(ROOTFS, "-r", "100-199")
        assert (part["status"], body) == ("206", content[100:200])
        assert part["content-range"] == f"bytes 100-199/{len(content)}"
        same, body = ask(ROOTFS, "-r", "100-199", "-H", f"If-Range: {headers['etag']}")
        assert (same["status"], body) == ("206", content[100:200])
        other, body = ask(ROOTFS, "-r", "100-199", "-H", 'If-Range: "other"')
        assert (other["status"], body) == ("200", content)
        beyond, _ = ask(ROOTFS, "-r", f"{len(content)}-")
        assert (beyond["status"], beyond["content-range"]) == ("416", f"bytes */{len(content)}")
        assert ask(ROOTFS, "-I")[0]["content-length"] == str(len(content))
        assert ask(f"/internal/{next(place.storage.glob('verbs/derived/*/*/*')).name}")[0]["status"] == "404"


def test_nginx_passes_on_what_is_not_stored(place: Place, readonly: Running, tmp_path: Path) -> None:
    url = "/c1/rootfs/acme/app/curl_command"
    with nginx(tmp_path, readonly) as ask:
        headers, body = ask(url)
        assert (headers["status"], body) == ("200", whole(readonly, url))
        part, some = ask(url, "-r", "-100")
        assert (part["status"], some) == ("206", body[-100:])
