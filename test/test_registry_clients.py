"""The front door as programs use it: skopeo, podman, docker and containerd push and pull, and run what was pushed.

The law: real servers, on SQLite and a folder, and on PostgreSQL and an S3; every image is private, so every program has
to log in.
"""

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from test.clients import program, run
from test.databases import postgresql
from test.images import Image, Layer, Layout
from test.layers import directory, file, symlink
from test.place import Place
from test.s3server import s3_client, s3_server
from test.server import curl, served
from test.waiting import eventually

PASSWORD = "correct-horse"
KINDS = ("folder", "s3")
AMD64 = Image(
    [
        Layer([directory(b"etc"), file(b"etc/hostname", b"base\n"), symlink(b"bin", b"usr/bin")]),
        Layer([file(b"etc/hostname", b"top\n"), file(b"etc/.wh.gone", b"")], "zstd"),
    ],
    run={"Cmd": ["/bin/true"], "Labels": {"a": "b"}},
)
GZIP = Image([Layer([file(b"etc/hostname", b"here\n")]), Layer([file(b"opt/tool", b"x" * 70_000, mode=0o755)])])
ARM64 = Image([Layer([file(b"etc/hostname", b"arm\n")])], platform="linux/arm64")


@dataclass(frozen=True)
class Site:
    """A registry that is served, with a user `alice` who owns what is pushed."""

    host: str
    place: Place

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def target(self, name: str) -> str:
        return f"docker://{self.host}/{name}"

    def skopeo(self, *arguments: str) -> bytes:
        return run("skopeo", "--insecure-policy", *arguments)

    def push(self, source: str, name: str, *more: str) -> None:
        known = ("--dest-tls-verify=false", f"--dest-creds=alice:{PASSWORD}")
        self.skopeo("copy", *known, *more, source, self.target(name))

    def pull(self, name: str, target: str, *more: str) -> None:
        known = ("--src-tls-verify=false", f"--src-creds=alice:{PASSWORD}")
        self.skopeo("copy", *known, *more, self.target(name), target)

    def get(self, path: str, *more: str) -> bytes:
        done = curl("-fL", "-u", f"alice:{PASSWORD}", *more, f"{self.url}{path}")
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def _settings(kind: str) -> Iterator[Mapping[str, Any]]:
    if kind == "folder":
        yield {}
        return
    with postgresql() as uri, s3_server() as url:
        bucket = f"registry-{tempfile.mktemp(prefix='', dir='')}".lower().replace("_", "-").strip("-")
        s3_client(url).create_bucket(Bucket=bucket)
        parameters = {
            "storage_path": "/registry",
            "hostname": url.removeprefix("http://").partition(":")[0],
            "port": int(url.rpartition(":")[2]),
            "is_secure": False,
            "access_key": "key",
            "secret_key": "secret",
            "bucket_name": bucket,
        }
        yield {
            "DB_URI": uri,
            "VERBS_REGISTRY": "own",
            "DISTRIBUTED_STORAGE_CONFIG": json.dumps({"default": ["RadosGWStorage", parameters]}),
        }


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        place = Place(tmp_path_factory.mktemp("registry"), stack.enter_context(_settings(request.param)))
        services = place.services()
        for name in ("alice", "bob"):
            services.administration.create_user(name, PASSWORD)
        services.engine.dispose()
        server = stack.enter_context(served(place, workers=2))
        yield Site(server.url.removeprefix("http://"), place)


def layout_of(folder: Path, *images: Image) -> str:
    """Write the images, as an index where there are several, and return how skopeo is told of them."""
    layout = Layout(folder)
    return layout.tag("1", layout.image(images[0]) if len(images) == 1 else layout.index(*images))


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of what skopeo wrote as `dir:`."""
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return document


def check_blobs(folder: Path, manifest: Mapping[str, Any]) -> None:
    for blob in (manifest["config"], *manifest["layers"]):
        name = blob["digest"].removeprefix("sha256:")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == name


# --- skopeo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_skopeo_copies_an_image_there_and_back(site: Site, tmp_path: Path, form: str) -> None:
    source = layout_of(tmp_path / "image", GZIP)
    site.push(source, f"alice/back-{form}:1", "--format", form)
    site.pull(f"alice/back-{form}:1", f"dir:{tmp_path / 'back'}")
    manifest = manifest_of(tmp_path / "back")
    media_type = {"oci": "application/vnd.oci.image.manifest.v1+json"}.get(
        form, "application/vnd.docker.distribution.manifest.v2+json"
    )
    assert manifest["mediaType"] == media_type
    assert [layer["digest"] for layer in manifest["layers"]] == [
        f"sha256:{hashlib.sha256(layer.blob).hexdigest()}" for layer in GZIP.layers
    ]
    check_blobs(tmp_path / "back", manifest)


def test_an_image_with_zstd_layers_comes_back_to_the_byte(site: Site, tmp_path: Path) -> None:
    source = layout_of(tmp_path / "image", AMD64)
    site.push(source, "alice/zstd:1", "--preserve-digests")
    site.pull("alice/zstd:1", f"oci:{tmp_path / 'back'}:1", "--preserve-digests")
    sent = {path.name for path in (tmp_path / "image" / "blobs" / "sha256").iterdir()}
    assert {path.name for path in (tmp_path / "back" / "blobs" / "sha256").iterdir()} == sent


def test_skopeo_compresses_with_zstd_on_the_way(site: Site, tmp_path: Path) -> None:
    plain = Image([Layer([file(b"etc/hostname", b"plain\n")], "none")])
    site.push(layout_of(tmp_path / "image", plain), "alice/zstd:2", "--dest-compress-format", "zstd")
    site.pull("alice/zstd:2", f"dir:{tmp_path / 'back'}")
    [layer] = manifest_of(tmp_path / "back")["layers"]
    assert layer["mediaType"].endswith("+zstd")
    assert b"plain\n" in site.get("/c1/rootfs/alice/zstd/2")


def test_every_image_of_an_index_is_copied(site: Site, tmp_path: Path) -> None:
    source = layout_of(tmp_path / "image", GZIP, ARM64)
    site.push(source, "alice/multi:1", "--all")
    site.pull("alice/multi:1", f"oci:{tmp_path / 'back'}:1", "--all")
    sent = {path.name for path in (tmp_path / "image" / "blobs" / "sha256").iterdir()}
    assert {path.name for path in (tmp_path / "back" / "blobs" / "sha256").iterdir()} == sent
    assert b"arm\n" in site.get("/c1/rootfs/alice/multi/1?platform=linux/arm64")


def test_skopeo_lists_inspects_and_deletes(site: Site, tmp_path: Path) -> None:
    source = layout_of(tmp_path / "image", GZIP)
    known = ("--tls-verify=false", f"--creds=alice:{PASSWORD}")
    for tag in ("1", "2", "latest"):
        site.push(source, f"alice/listed:{tag}")
    listed = json.loads(site.skopeo("list-tags", *known, site.target("alice/listed")))
    assert listed["Tags"] == ["1", "2", "latest"]
    seen = json.loads(site.skopeo("inspect", *known, site.target("alice/listed:latest")))
    assert (seen["Architecture"], len(seen["Layers"])) == ("amd64", 2)
    site.skopeo("delete", *known, site.target("alice/listed:latest"))  # by the digest, so all three
    assert json.loads(site.get("/v2/alice/listed/tags/list"))["tags"] == []


def test_who_is_not_let_in_gets_nothing(site: Site, tmp_path: Path) -> None:
    site.push(layout_of(tmp_path / "image", GZIP), "alice/secret:1")
    for credentials in ("--no-creds", "--creds=bob:wrong"):
        done = subprocess.run(
            [program("skopeo"), "inspect", "--tls-verify=false", credentials, site.target("alice/secret:1")],
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0
        assert b"unauthorized" in done.stderr.lower() or b"authentication required" in done.stderr.lower()


def test_what_was_pushed_is_handed_out_by_the_verbs(site: Site, tmp_path: Path) -> None:
    site.push(layout_of(tmp_path / "image", AMD64), "alice/verbs:1", "--preserve-digests")
    tar = tmp_path / "rootfs.tar"
    tar.write_bytes(site.get("/c1/rootfs/alice/verbs/1"))
    assert run("tar", "-xOf", str(tar), "etc/hostname") == b"top\n"
    assert curl("-o", "/dev/null", "-w", "%{http_code}", f"{site.url}/c1/rootfs/alice/verbs/1").stdout == b"401"


# --- podman -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Podman:
    """podman with a storage of its own, logged in at a site."""

    folder: Path
    site: Site

    def __call__(self, *arguments: str, stdin: bytes = b"") -> bytes:
        where = ("--root", str(self.folder / "r"), "--runroot", str(self.folder / "rr"), "--storage-driver", "vfs")
        how = ("--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc")
        return run("podman", *where, *how, *arguments, stdin=stdin)

    def log_in(self) -> None:
        options = ("--tls-verify=false", "--authfile", str(self.folder / "auth"), "-u", "alice", "--password-stdin")
        assert b"Login Succeeded" in self("login", *options, self.site.host, stdin=PASSWORD.encode())

    def remote(self, verb: str, *arguments: str) -> bytes:
        return self(verb, "--tls-verify=false", "--authfile", str(self.folder / "auth"), *arguments)


@pytest.fixture
def podman(site: Site) -> Iterator[Podman]:
    # podman takes no path of more than 50 characters here, and pytest's have more.
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        podman = Podman(Path(folder), site)
        podman.log_in()
        yield podman
        podman("rmi", "--all", "--force")


def static_image(folder: Path) -> str:
    """Write an image that has one program, and return how it is told of."""
    busybox = Path(program("busybox")).read_bytes()
    entries = [directory(b"bin"), file(b"bin/busybox", busybox, mode=0o755), symlink(b"bin/echo", b"busybox")]
    image = Image([Layer(entries)], run={"Entrypoint": ["/bin/echo", "hello from"], "Cmd": ["the image"]})
    return layout_of(folder, image)


def test_podman_pulls_runs_and_pushes(site: Site, podman: Podman, tmp_path: Path) -> None:
    site.push(static_image(tmp_path / "image"), "alice/hello:1")
    name = f"{site.host}/alice/hello"
    podman.remote("pull", "-q", f"{name}:1")
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
    assert podman("run", "--rm", "--network", "none", *limits, f"{name}:1") == b"hello from the image\n"
    podman("tag", f"{name}:1", f"{name}:2")
    podman.remote("push", "-q", f"{name}:2")
    podman("rmi", "--all", "--force")
    podman.remote("pull", "-q", f"{name}:2")
    [seen] = json.loads(podman("inspect", "--type", "image", f"{name}:2"))
    assert seen["Config"]["Entrypoint"] == ["/bin/echo", "hello from"]


def test_podman_pulls_a_virtual_tag(site: Site, podman: Podman, tmp_path: Path) -> None:
    site.push(static_image(tmp_path / "image"), "alice/virtual:1")
    name = f"{site.host}/alice/virtual:1.squash"
    podman.remote("pull", "-q", name)
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")
    assert podman("run", "--rm", "--network", "none", *limits, name, "one layer") == b"hello from one layer\n"
    shutil.rmtree(tmp_path / "image")


# --- docker, and the containerd below it ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Docker:
    """A daemon of docker's with a storage of its own, which runs nothing in the machine's networks."""

    folder: Path

    def __call__(self, *arguments: str, stdin: bytes = b"") -> bytes:
        where = ("--host", f"unix://{self.folder}/docker.sock", "--config", str(self.folder / "config"))
        return run("docker", *where, *arguments, stdin=stdin)

    def below(self, *arguments: str) -> bytes:
        """Ask its containerd, in a namespace where docker has nothing."""
        return run("ctr", "--address", str(self.folder / "x/containerd/containerd.sock"), *arguments)

    def log_in(self, site: Site) -> None:
        assert b"Login Succeeded" in self(
            "login", "-u", "alice", "--password-stdin", site.host, stdin=PASSWORD.encode()
        )

    def output(self, image: str, *words: str) -> bytes:
        """Return what a container of `image` writes."""
        return self("run", "--rm", "--network", "none", image, *words)


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    # A socket's path has at most 108 characters, and pytest's folders have more.
    with tempfile.TemporaryDirectory(prefix="docker", ignore_cleanup_errors=True) as name:
        docker = Docker(Path(name))
        folders = ("--data-root", f"{name}/d", "--exec-root", f"{name}/x", "--pidfile", f"{name}/pid")
        alone = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--exec-opt", "native.cgroupdriver=cgroupfs")
        where = ("--host", f"unix://{name}/docker.sock", "--storage-driver", "vfs")
        log = Path(name, "log")
        with log.open("wb") as file:
            daemon = subprocess.Popen([program("dockerd"), *folders, *alone, *where], stdout=file, stderr=file)
        try:
            eventually(lambda: Path(name, "docker.sock").exists() or daemon.poll() is not None, what="no docker")
            assert daemon.poll() is None, log.read_text()
            yield docker
        finally:
            daemon.terminate()
            daemon.wait(60)


def test_docker_pulls_runs_and_pushes(site: Site, docker: Docker, tmp_path: Path) -> None:
    site.push(static_image(tmp_path / "image"), "alice/docked:1")
    docker.log_in(site)
    name = f"{site.host}/alice/docked"
    docker("pull", "-q", f"{name}:1")
    assert docker.output(f"{name}:1") == b"hello from the image\n"
    docker("tag", f"{name}:1", f"{name}:2")
    docker("push", "-q", f"{name}:2")
    docker("tag", f"{name}:1", f"{site.host}/alice/elsewhere:1")  # its layer is mounted, or sent again
    docker("push", "-q", f"{site.host}/alice/elsewhere:1")
    docker("rmi", "--force", f"{name}:1", f"{name}:2", f"{site.host}/alice/elsewhere:1")
    for back in (f"{name}:2", f"{site.host}/alice/elsewhere:1"):
        assert docker.output(back, "again") == b"hello from again\n"
        docker("rmi", "--force", back)
    docker("logout", site.host)
    with pytest.raises(pytest.fail.Exception, match="unauthorized"):
        docker("pull", "-q", f"{name}:1")


def test_docker_pulls_a_virtual_tag(site: Site, docker: Docker, tmp_path: Path) -> None:
    site.push(static_image(tmp_path / "image"), "alice/squashed:1")
    docker.log_in(site)
    name = f"{site.host}/alice/squashed:1.squash"
    assert docker.output(name, "one layer") == b"hello from one layer\n"
    docker("rmi", "--force", name)


@pytest.mark.parametrize("verb", ["squash", "oci"])
def test_docker_loads_what_the_verbs_give(site: Site, docker: Docker, tmp_path: Path, verb: str) -> None:
    site.push(static_image(tmp_path / "image"), f"alice/{verb}:1")
    said = docker("load", stdin=site.get(f"/c1/{verb}/alice/{verb}/1")).decode()
    name = said.removeprefix("Loaded image: ").strip()
    assert f"/alice/{verb}:1" in name
    assert docker.output(name, verb) == f"hello from {verb}\n".encode()
    docker("rmi", "--force", name)


def test_docker_imports_a_rootfs(site: Site, docker: Docker, tmp_path: Path) -> None:
    site.push(static_image(tmp_path / "image"), "alice/flat:1")
    image = docker("import", "-", stdin=site.get("/c1/rootfs/alice/flat/1")).decode().strip()
    assert docker.output(image, "/bin/echo", "flat") == b"flat\n"
    docker("rmi", "--force", image)


def test_containerd_pulls_pushes_and_imports(site: Site, docker: Docker, tmp_path: Path) -> None:
    site.push(static_image(tmp_path / "image"), "alice/contained:1")
    name = f"{site.host}/alice/contained"
    remote = ("--plain-http", "--user", f"alice:{PASSWORD}")
    for tag in ("1", "1.squash"):
        docker.below("images", "pull", "--snapshotter", "native", *remote, f"{name}:{tag}")
    docker.below("images", "tag", f"{name}:1", f"{name}:2")
    docker.below("images", "push", *remote, f"{name}:2")
    assert json.loads(site.get("/v2/alice/contained/tags/list"))["tags"] == ["1", "2"]
    for verb in ("oci", "squash"):
        archive = tmp_path / f"{verb}.tar"
        archive.write_bytes(site.get(f"/c1/{verb}/alice/contained/1?compression=none"))
        assert b"/alice/contained:1" in docker.below("images", "import", "--snapshotter", "native", str(archive))
    names = docker.below("images", "ls", "-q").decode().split()
    assert len(names) == 5
    docker.below("images", "rm", *names)
