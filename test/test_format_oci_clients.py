"""The OCI archive, read by the programs that people have, as a layout and as what `docker load` takes."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from formats.ociarchive import OciArchive
from formats.testing import CONFIG, MemoryRootfs, source_image
from test.clients import run
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.server import served
from util.compression import Compression
from util.digest import Digest
from util.packedlayer import packed

NAME = "registry.example.com:8443/acme/greet:1.0"
APP = Image(
    [Layer([file(b"etc/hostname", b"base\n")]), Layer([file(b"etc/hostname", b"top\n")], "zstd")],
    run={"Cmd": ["/bin/sh"], "Labels": {"purpose": "to be read"}},
)


def archive(path: Path, compression: Compression = Compression.GZIP, **changes: Any) -> Path:
    rootfs = MemoryRootfs()
    image = source_image(layer=packed(iter([rootfs.content]), compression), **changes)
    path.write_bytes(b"".join(OciArchive().stream(image, rootfs, folder="/nowhere")))
    return path


@pytest.fixture(params=list(Compression))
def compressed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return archive(tmp_path / "image.oci.tar", request.param)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return archive(tmp_path / "image.oci.tar")


# --- skopeo and umoci -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["", ":1.0"])
def test_skopeo_finds_the_one_image_in_the_layout_and_by_its_tag(compressed: Path, reference: str) -> None:
    config = json.loads(run("skopeo", "inspect", "--config", "--raw", f"oci-archive:{compressed}{reference}"))
    assert config["config"] == CONFIG["config"]
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(MemoryRootfs().content).hexdigest()]


def test_skopeo_copies_the_layout_with_its_digests_as_they_are(compressed: Path, tmp_path: Path) -> None:
    before = run("skopeo", "inspect", "--raw", f"oci-archive:{compressed}")
    run("skopeo", "copy", "-q", "--preserve-digests", f"oci-archive:{compressed}:1.0", f"oci:{tmp_path}/layout:copied")
    assert run("skopeo", "inspect", "--raw", f"oci:{tmp_path}/layout:copied") == before
    with tarfile.open(compressed) as tar:
        assert f"blobs/sha256/{Digest.of(before).hex}" in tar.getnames()


def test_skopeo_reads_it_as_docker_does(compressed: Path, tmp_path: Path) -> None:
    assert json.loads(run("skopeo", "list-tags", f"docker-archive:{compressed}"))["Tags"] == [NAME]
    run("skopeo", "copy", "-q", f"docker-archive:{compressed}:{NAME}", f"oci:{tmp_path}/layout:copied")
    config = json.loads(run("skopeo", "inspect", "--config", "--raw", f"oci:{tmp_path}/layout:copied"))
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(MemoryRootfs().content).hexdigest()]


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.GZIP])  # umoci of Debian 12 knows no zstd
def test_umoci_unpacks_the_layout(compression: Compression, tmp_path: Path) -> None:
    path = archive(tmp_path / "image.oci.tar", compression)
    (tmp_path / "layout").mkdir()
    run("tar", "-xf", str(path), "-C", str(tmp_path / "layout"))
    assert run("umoci", "list", "--layout", str(tmp_path / "layout")) == b"1.0\n"
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:1.0", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "rootfs" / "etc" / "motd").read_bytes() == b"x" * 70_000
    bundle = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert bundle["process"]["args"] == ["/usr/bin/greet", "--loud", "world"]


# --- podman -----------------------------------------------------------------------------------------------------------


class Podman:
    """podman with a storage of its own, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--storage-driver", "vfs", "--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return run("podman", *self._options, *arguments, stdin=stdin)

    def inspect(self, name: str) -> Any:
        [seen] = json.loads(self("inspect", "--type", "image", name))
        return seen


@pytest.fixture
def podman() -> Iterator[Podman]:
    # podman takes no path of more than 50 characters here, and pytest's have more.
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        podman = Podman(Path(folder))
        yield podman
        podman("rmi", "--all", "--force")


def test_podman_loads_it_under_the_name_that_the_registry_has_for_it(podman: Podman, compressed: Path) -> None:
    assert NAME in podman("load", "-q", "-i", str(compressed)).decode()
    seen = podman.inspect(NAME)
    assert seen["Config"]["Cmd"] == ["world"]
    assert seen["RootFS"]["Layers"] == ["sha256:" + hashlib.sha256(MemoryRootfs().content).hexdigest()]


def test_podman_loads_it_from_a_pipe(podman: Podman, plain: Path) -> None:
    assert NAME in podman("load", stdin=plain.read_bytes()).decode()
    with tarfile.open(fileobj=io.BytesIO(plain.read_bytes()), mode="r|") as tar:
        assert tar.next().name == "oci-layout"  # type: ignore[union-attr]


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_podman_pulls_it_by_either_reading(podman: Podman, compressed: Path, transport: str) -> None:
    name = podman("pull", "-q", f"{transport}:{compressed}").decode().strip()
    folder = Path(podman("image", "mount", name).decode().strip())
    try:
        assert (folder / "etc" / "motd").read_bytes() == b"x" * 70_000
    finally:
        podman("image", "unmount", name)


def test_one_that_was_asked_for_by_its_digest_is_loaded_too(podman: Podman, tmp_path: Path) -> None:
    path = archive(tmp_path / "image.oci.tar", host="localhost", tag=f"sha256:{'0f' * 32}")
    name = f"localhost/acme/greet:sha256-{'0f' * 32}"
    assert name in podman("load", "-q", "-i", str(path)).decode()
    assert podman.inspect(name)


# --- From a server ----------------------------------------------------------------------------------------------------


def test_it_is_downloaded_gone_on_with_and_is_what_the_virtual_tag_is(tmp_path: Path, podman: Podman) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", APP)
    with served(place) as server:
        url = f"{server.url}/c1/oci/acme/app/1.0"
        whole = run("curl", "-fsS", url)
        assert run("curl", "-fsS", "-r", "0-999", url) + run("curl", "-fsS", "-r", "1000-", url) == whole
        archived = tmp_path / "image.oci.tar"
        archived.write_bytes(whole)
        again = run("skopeo", "inspect", "--raw", f"oci-archive:{archived}")
        virtual = run("curl", "-fsS", f"{server.url}/v2/acme/app/manifests/1.0.squash")
        assert again == virtual
    assert b"registry.example.com/acme/app:1.0" in podman("load", stdin=whole)
    seen = podman.inspect("registry.example.com/acme/app:1.0")
    assert seen["Labels"] == {"purpose": "to be read"}
    folder = Path(podman("image", "mount", "registry.example.com/acme/app:1.0").decode().strip())
    try:
        assert (folder / "etc" / "hostname").read_bytes() == b"top\n"
    finally:
        podman("image", "unmount", "registry.example.com/acme/app:1.0")


def test_another_server_after_a_restart_gives_the_same_bytes(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", APP)
    given: list[list[bytes]] = []
    for state in ("normal", "normal", "readonly"):
        with served(replace(place, more={"REGISTRY_STATE": state})) as server:
            urls = [f"{server.url}/c1/oci/acme/app/1.0?compression={compression}" for compression in Compression]
            given.append([run("curl", "-fsS", url) for url in urls])
        place.sql("DELETE FROM verbs_derived")
    assert given[0] == given[1] == given[2]
    assert len({*given[0]}) == 3
