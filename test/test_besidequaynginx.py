"""The nginx blocks of the page for operators, run by nginx between curl, a server of ours, and what stands for Quay.

With QUAY_SOURCE set to a checkout of quay/quay, its own templates stand around the block for Quay's own nginx;
otherwise a server block does that has the locations which Quay's has (quay/quay, conf/nginx/server-base.conf.jnj).
"""

import gzip
import json
import os
import re
import shlex
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import jinja2
import pytest

from test.clients import run
from test.databases import free_port
from test.images import Image, Layer
from test.layers import file
from test.nginx import around, nginx
from test.page import blocks, commands, replaced
from test.place import Place
from test.server import Running, served
from test.waiting import eventually
from util.digest import Digest

HOST = "quay.example.com"
VERBS_HOST = "verbs.example.com"
NOISE = Image([Layer([file(b"%d" % number, os.urandom(8 << 20))]) for number in range(4)])
SMALL = Image([Layer([file(b"etc/hostname", b"small\n")])])
DAMAGED = Layer([file(b"noise", os.urandom(64 << 20))])  # far more than sockets hold on the way
LOST = Layer([file(b"lost", b"lost")])
ROOTFS = "/c1/rootfs/acme/app/v1"
GZIP = "/c1/squash/acme/app/v1"

CUT = (18, 56, 92)
"""What curl exits with: it has a part of a file; the connection was reset; HTTP/2 said so."""

OURS = (
    "/c1/",
    "/c1/_internal_ping",
    "/c1/rootfs/acme/app/v1",
    "/c1/rootfs/v2/deep/er/blobs/v1",  # Quay's locations for /v2/ are not anchored
    "/c1/rootfs/v2/deep/tags/list",
    "/c1/rootfs/v2/deep/manifests/v1",
    "/aci-signing-key",
    "/acme/app?ac-discovery=1",
    "/acme/app?x=1&ac-discovery=1",
    "/?ac-discovery=1",
    "/acme?ac-discovery=1",
)
QUAYS = (
    "/",
    "/acme/app",
    "/acme/app?ac-discovery=10",
    "/acme/app?xac-discovery=1",
    "/acme/app?tab=tags",
    "/c1x/y",
    "/aci-signing-key/more",
    "/ac-discovery/acme/app",
    "/v2/",
    "/v2/auth?service=quay.example.com",
    "/v2/acme/app/manifests/v1",
    "/v2/acme/c1/blobs/sha256:00",
    "/api/v1/repository",
    "/health/instance",
    "/repository/acme/app",
)


class _QuayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"quay": self.path, **{name.lower(): value for name, value in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("X-Who", "quay")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def quay_server() -> Iterator[str]:
    """Give the address of a server that answers every request with what it was asked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _QuayHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def ours(self) -> bool:
        """Whether it was registry-verbs that answered."""
        return "x-request-id" in self.headers and self.headers.get("x-who") != "quay"


@dataclass(frozen=True)
class Front:
    """An nginx as the page has it. `home` has a .curlrc by which curl finds it under its public names."""

    home: Path
    scheme: str
    log: Path
    audit: Path
    running: Running

    def curl(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        command = ["curl", "-s", *arguments]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)

    def ask(self, path: str, *options: str, host: str = HOST) -> Answer:
        """Ask for `path` as it is written, and fail if the answer does not come whole."""
        done = self.curl("-i", "--path-as-is", "--http1.1", *options, f"{self.scheme}://{host}{path}")
        assert done.returncode == 0, (path, done)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(status.split()[1]), headers, body)

    def lines(self) -> list[dict[str, str]]:
        """Return the lines of the audit."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    more = {"SERVER_HOSTNAME": HOST, "PREFERRED_URL_SCHEME": "https", "VERBS_PROXIES": "1"}
    place = Place(tmp_path_factory.mktemp("place"), more)
    place.push("acme/app:v1", NOISE)
    place.push("acme/small:v1", SMALL)
    place.push("v2/deep/er/blobs:v1", SMALL)
    place.push("acme/damaged:v1", Image([DAMAGED]))
    place.push("acme/lost:v1", Image([LOST]))
    place.blob(LOST).unlink()
    return place


@pytest.fixture(scope="module")
def running(place: Place) -> Iterator[Running]:
    with served(place, workers=2, more={"VERBS_AUDIT_LOG": str(place.folder / "audit.jsonl")}) as running:
        content = bytearray(place.blob(DAMAGED).read_bytes())
        content[-(1 << 20)] ^= 1  # the digest tells at the end
        place.blob(DAMAGED).write_bytes(content)
        yield running


def address(running: Running) -> str:
    return running.url.removeprefix("http://")


def before_quay(folder: Path, port: int, quay: str, ours: str) -> str:
    """Return the page's configuration of a proxy in front of Quay, and of a name of our own, as one."""
    certificate = ["-out", f"{folder}/quay.crt", "-keyout", f"{folder}/quay.key", "-subj", f"/CN={HOST}"]
    names = ["-addext", f"subjectAltName=DNS:{HOST},DNS:{VERBS_HOST}"]
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *certificate, *names)
    here = [block for block in blocks("nginx") if "listen 443 ssl http2;" in block]
    assert len(here) == 2
    return replaced(
        "\n".join(here),
        {
            "192.0.2.20:8080": quay,
            "192.0.2.10:8080": ours,
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/nginx/quay.crt": f"{folder}/quay.crt",
            "/etc/nginx/quay.key": f"{folder}/quay.key",
        },
    )


INNER = r"""
map $http_host $safe_host {{ default $http_host; "" $host; }}
map $http_x_forwarded_proto $final_proto {{ default https; ~.+ $http_x_forwarded_proto; }}
gzip on; gzip_http_version 1.0; gzip_proxied any; gzip_min_length 500; gzip_types application/octet-stream;
server {{
    listen 127.0.0.1:{port};
    set_real_ip_from 0.0.0.0/0;
    real_ip_recursive on;
    real_ip_header X-Forwarded-For;
    add_header X-Frame-Options DENY;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $final_proto;
    proxy_redirect off;
    absolute_redirect off;
    proxy_set_header Host $safe_host;
    proxy_set_header X-Forwarded-Host $safe_host;
    location / {{ proxy_pass http://{quay}; }}
    location ~* ^(/config|/keys|/.well-known|/health(/.*)?) {{ proxy_pass http://{quay}; }}
    location /api/ {{ proxy_pass http://{quay}; }}
    location ~ /v2/([^/]+)(/[^/]+)+/blobs/ {{ proxy_pass http://{quay}; }}
    location ~ /v2/([^/]+)\/[^/]+/tags/ {{ proxy_pass http://{quay}; }}
    location ~ /v2/([^/]+)\/[^/]+/manifests/ {{ proxy_pass http://{quay}; }}
    location ~ ^/v2 {{ proxy_pass http://{quay}; }}
    error_page 502 =502 /502.html;
    location = /502.html {{ return 502 "quay's own page"; }}
    {inserted}
}}
"""


def within_quay(folder: Path, port: int, quay: str, ours: str) -> Path:
    """Write Quay's nginx with the page's block in it into `folder`, laid out as Quay's is; return its main file."""
    (block,) = (block for block in blocks("nginx") if "# registry-verbs.conf" in block)
    (folder / "stack").mkdir()
    (folder / "stack" / "registry-verbs.conf").write_text(replaced(block, {"192.0.2.10:8080": ours}))
    source = os.environ.get("QUAY_SOURCE")
    template = "# the template\n" if source is None else Path(source, "conf/nginx/server-base.conf.jnj").read_text()
    inserted = with_include(folder, template)
    main = folder / "nginx"
    if source is None:
        return around(main, INNER.format(port=port, quay=quay, inserted=inserted))
    main.mkdir()
    values = {
        "maximum_layer_size": "20G",
        "static_dir": str(folder),
        "default_ui": "angular",
        "preferred_scheme": "https",
        "use_ipv4": True,
    }
    own = {
        "/tmp/nginx": f"{folder}/nginx",
        "/var/log/nginx": str(main),
        "/error.log;": "/error.log info;",
        "unix:/tmp/gunicorn_web.sock": quay,
        "unix:/tmp/gunicorn_registry.sock": quay,
        "unix:/tmp/gunicorn_secscan.sock": quay,
        "listen 8080": f"listen 127.0.0.1:{port}",
        "worker_processes auto;": "worker_processes 1; master_process off;",
        "proxy_temp_path /tmp 1 2;": f"proxy_temp_path {folder}/temp 1 2;",
        f"pid {folder}/nginx.pid": f"pid {main}/pid",
    }
    for name in ("nginx.conf", "http-base.conf", "rate-limiting.conf", "server-base.conf", "root-base.conf"):
        path = Path(source, "conf/nginx", name + ("" if name == "root-base.conf" else ".jnj"))
        content = inserted if name == "server-base.conf" else path.read_text()
        content = jinja2.Template(content).render(values)
        for word, instead in own.items():
            content = content.replace(word, instead)
        (main / name).write_text(content)
    (main / "resolver.conf").write_text(Path(source, "conf/nginx/resolver.conf").read_text())
    return main / "nginx.conf"


def with_include(folder: Path, template: str) -> str:
    """Return what the page's shell block makes of Quay's template."""
    (shell,) = (block for block in blocks("sh") if "server-base.conf.jnj" in block)
    (folder / "template").write_text(template)
    podman = (
        f'podman() {{ [ "$*" = {shlex.quote("run --rm --entrypoint cat the-image " + IN_IMAGE)} ] && cat template; }}'
    )
    script = f"set -eu\n{podman}\nQUAY_IMAGE=the-image\n{shell}"
    done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "server-base.conf.jnj").read_text()


IN_IMAGE = "/quay-registry/conf/nginx/server-base.conf.jnj"


@contextmanager
def fronted(running: Running, folder: Path, where: str, *, without: str = "") -> Iterator[Front]:
    """Run the page's nginx `before` Quay or `within` it; `without` is a directive that it does not have."""
    with ExitStack() as stack:
        quay, port = stack.enter_context(quay_server()), free_port()
        if where == "before":
            scheme, public = "https", 443
            inner = before_quay(folder, port, quay, address(running))
            main = around(folder / "nginx", "gzip on; gzip_proxied any; gzip_types *;\n" + inner)
            certificate = f'cacert = "{folder}/quay.crt"'
        else:
            scheme, public, certificate = "http", 80, ""
            main = within_quay(folder, port, quay, address(running))
        if without:
            changed = main if where == "before" else folder / "stack" / "registry-verbs.conf"
            changed.write_text(replaced(changed.read_text(), {without: ""}))
        known = [f'connect-to = "{host}:{public}:127.0.0.1:{port}"' for host in (HOST, VERBS_HOST)]
        known.append(f'connect-to = "192.0.2.10:8080:{address(running)}"')
        (folder / ".curlrc").write_text("\n".join([*known, certificate]) + "\n")
        log = stack.enter_context(nginx(main))
        yield Front(folder, scheme, log, running.place.folder / "audit.jsonl", running)


@pytest.fixture(scope="module", params=["before", "within"])
def front(
    request: pytest.FixtureRequest, running: Running, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with fronted(running, tmp_path_factory.mktemp("nginx"), request.param) as front:
        yield front


# --- Who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OURS)
def test_what_is_ours_reaches_us(front: Front, path: str) -> None:
    answer = front.ask(path)
    assert answer.ours, answer
    direct = subprocess.run(["curl", "-si", f"{front.running.url}{path}"], capture_output=True, check=True).stdout
    assert answer.status == int(direct.split()[1])


@pytest.mark.parametrize("path", QUAYS)
def test_everything_else_reaches_quay(front: Front, path: str) -> None:
    answer = front.ask(path)
    if path == "/ac-discovery/acme/app":  # internal: who asks for it by this name is told of nothing
        assert answer.status == 404
        assert not answer.ours
        return
    assert (answer.status, answer.headers["x-who"]) == (200, "quay")
    assert json.loads(answer.body)["quay"] == path


def test_a_page_of_discovery_is_that_of_its_name(front: Front) -> None:
    page = front.ask("/acme/app?ac-discovery=1").body.decode()
    (template,) = set(re.findall(rf'name="ac-discovery" content="{HOST} (\S*{{version}}\S*)"', page))
    assert template == f"https://{HOST}/c1/aci/{{name}}/{{version}}/{{ext}}/{{os}}/{{arch}}/"
    url = template
    for label, word in {"name": f"{HOST}/acme/small", "version": "v1", "ext": "aci", "os": "linux"}.items():
        url = url.replace(f"{{{label}}}", word)
    path = url.replace("{arch}", "amd64").removeprefix(f"https://{HOST}")
    image = front.ask(path)
    assert image.status == 200
    with tarfile.open(fileobj=BytesIO(gzip.decompress(image.body))) as tar:
        assert "manifest" in tar.getnames()


def test_names_with_odd_characters_arrive_as_they_were_sent(front: Front) -> None:
    for path in ("/c1/rootfs/acme/%61pp/v1%2Fx", "/c1/rootfs/acme/app/v1?platform=linux%2Famd64", "/c1//rootfs/a"):
        direct = subprocess.run(
            ["curl", "-s", "--path-as-is", "-o", os.devnull, "-w", "%{http_code}", f"{front.running.url}{path}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert front.ask(path, "-I").status == int(direct.stdout)


# --- What is said of us -----------------------------------------------------------------------------------------------


def test_who_asks_is_who_the_proxy_says(front: Front, request: pytest.FixtureRequest) -> None:
    name = request.node.name.replace("[", "-").rstrip("]")
    answer = front.ask("/c1/rootfs/acme/none/v1", "-H", "X-Forwarded-For: 203.0.113.9", "-H", f"X-Request-ID: {name}")
    assert answer.headers["x-request-id"] == name
    lines = eventually(lambda: [line for line in front.lines() if line["request_id"] == name])
    # Quay's nginx takes over whom a proxy before it names; nobody does so in front.
    assert [line["ip"] for line in lines] == ["127.0.0.1" if front.scheme == "https" else "203.0.113.9"]


def test_addresses_are_public_ones(front: Front) -> None:
    refused = front.ask("/c1/rootfs/acme/none/v1")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, f'Basic realm="{HOST}"')
    listed = json.loads(front.ask("/c1/").body)
    assert {each["url"].split("/c1/")[0] for each in listed["verbs"]} == {f"https://{HOST}"}
    moved = front.ask("/c1/aci/x/acme/small/v1/aci/linux/amd64")
    assert (moved.status, moved.headers["location"]) == (308, "/c1/aci/x/acme/small/v1/aci/linux/amd64/")
    ported = front.ask("/c1/", "-H", f"Host: {HOST}:8443")
    assert f"https://{HOST}:8443/c1/" in ported.body.decode()


def test_errors_are_our_own(front: Front) -> None:
    lost = front.ask("/c1/rootfs/acme/lost/v1")
    assert (lost.status, json.loads(lost.body)["errors"][0]["code"]) == (502, "BLOB_NOT_FOUND")
    wrong = front.ask("/c1/ext4/acme/none/v1", "-u", "nobody:nothing")
    assert (wrong.status, json.loads(wrong.body)["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    head = front.ask("/c1/rootfs/acme/none/v1", "-I")
    assert (head.status, head.body) == (401, b"")


def test_a_folder_s_name_leads_into_the_folder(front: Front) -> None:
    moved = front.ask("/c1")
    assert moved.status == 301
    assert moved.headers["location"].removeprefix(f"{front.scheme}://{HOST}").endswith("/c1/")


# --- Large answers ----------------------------------------------------------------------------------------------------


def test_a_large_image_passes_without_lying_on_nginx_s_disk(front: Front, tmp_path: Path) -> None:
    target = tmp_path / "image"
    done = front.curl("-f", "--limit-rate", "16M", "-o", str(target), f"{front.scheme}://{HOST}{GZIP}")
    assert done.returncode == 0
    assert target.stat().st_size > 32 << 20
    assert "buffered to a temporary file" not in front.log.read_text()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_sizes_and_ranges_are_passed_on(front: Front, encoding: str) -> None:
    accepts = ("-H", f"Accept-Encoding: {encoding}")
    whole = front.ask(ROOTFS, *accepts)
    assert (whole.status, whole.headers["content-length"]) == (200, str(len(whole.body)))
    assert "content-encoding" not in whole.headers
    assert not whole.headers["etag"].startswith("W/")
    assert whole.headers["accept-ranges"] == "bytes"
    head = front.ask(ROOTFS, "-I", *accepts)
    assert head.headers["content-length"] == str(len(whole.body))
    part = front.ask(ROOTFS, "-r", "1000-1999", *accepts)
    assert (part.status, part.body) == (206, whole.body[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(whole.body)}"
    assert front.ask(ROOTFS, "-H", f"If-None-Match: {whole.headers['etag']}").status == 304


def test_a_download_that_is_cut_does_not_look_whole(front: Front) -> None:
    done = front.curl("-f", f"{front.scheme}://{HOST}/c1/squash/acme/damaged/v1")
    assert len(done.stdout) > 1 << 18, "it ended before there was anything to cut"
    assert done.returncode in CUT


# --- What the page says that each directive is for --------------------------------------------------------------------

wheres = pytest.mark.parametrize("where", ["before", "within"])


@wheres
def test_with_http_1_0_a_part_does_not_pass_for_the_whole_either(running: Running, tmp_path: Path, where: str) -> None:
    with fronted(running, tmp_path, where, without="proxy_http_version 1.1;") as front:
        done = front.curl("-f", f"{front.scheme}://{HOST}/c1/squash/acme/damaged/v1")
        assert done.returncode in CUT


@wheres
def test_with_buffering_an_image_lies_on_nginx_s_disk(running: Running, tmp_path: Path, where: str) -> None:
    with fronted(running, tmp_path, where, without="proxy_buffering off;") as front:
        done = front.curl("-f", "--limit-rate", "16M", "-o", os.devnull, f"{front.scheme}://{HOST}{GZIP}")
        assert done.returncode == 0
        assert "buffered to a temporary file" in front.log.read_text()


def test_with_compression_an_image_has_no_size(running: Running, tmp_path: Path) -> None:
    with fronted(running, tmp_path, "before", without="gzip off;") as front:
        answer = front.ask("/c1/ext4/acme/small/v1", "-H", "Accept-Encoding: gzip")
        assert answer.headers["content-encoding"] == "gzip"
        assert "content-length" not in answer.headers


@wheres
def test_a_path_with_v2_in_it_needs_a_prefix_that_goes_before(running: Running, tmp_path: Path, where: str) -> None:
    with fronted(running, tmp_path, where, without="^~ ") as front:
        assert front.ask("/c1/rootfs/v2/deep/er/blobs/v1").ours is (where == "before")


# --- A name of our own ------------------------------------------------------------------------------------------------


def test_virtual_tags_come_from_a_name_of_our_own(running: Running, tmp_path: Path) -> None:
    with fronted(running, tmp_path, "before") as front:
        challenged = front.ask("/v2/", host=VERBS_HOST)
        realm = f'realm="https://{VERBS_HOST}/v2/auth"'
        assert challenged.status == 401
        assert realm in challenged.headers["www-authenticate"]
        token = front.ask(f"/v2/auth?service={HOST}&scope=repository:acme/small:pull", host=VERBS_HOST)
        bearer = ("-H", f"Authorization: Bearer {json.loads(token.body)['token']}")
        manifest = front.ask("/v2/acme/small/manifests/v1.squash", *bearer, host=VERBS_HOST)
        assert manifest.status == 200
        (layer,) = json.loads(manifest.body)["layers"]
        blob = front.ask(f"/v2/acme/small/blobs/{layer['digest']}", *bearer, host=VERBS_HOST)
        assert str(Digest.of(blob.body)) == layer["digest"]
        assert front.ask("/c1/_internal_ping", host=VERBS_HOST).body == b"true"
        for path in ("/metrics", "/api/v1/jobs", "/health"):
            assert front.ask(path, host=VERBS_HOST).status == 404


# --- The page's own lines ---------------------------------------------------------------------------------------------


def test_the_lines_that_ask_whether_it_works(front: Front) -> None:
    asked = [line for line in commands() if line.startswith("curl ")]
    assert len(asked) == 5
    for written in asked:
        line = written.replace("https:", f"{front.scheme}:").replace('-u "$ROBOT:$TOKEN" ', "")
        environment = {"PATH": os.environ["PATH"], "HOME": str(front.home)}
        command = ["bash", "-o", "pipefail", "-ec", line]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, True), (line, done)
