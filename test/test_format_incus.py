"""The unified image: its metadata against the manual, and LXD, which imports it and unpacks it for an instance.

Incus manual, "Image format"; Incus and LXD read the same one.
"""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from formats.incus import IncusImage, NoIncusArchitecture
from formats.testing import CONFIG, MemoryRootfs, source_image
from test.clients import program
from util.compression import Compression, compressed
from util.oci import Platform


def archive(*arguments: Any, **changes: Any) -> bytes:
    rootfs = MemoryRootfs(path_prefix=b"rootfs/")
    return b"".join(IncusImage().stream_generator(source_image(*arguments, **changes), rootfs))


def metadata(*arguments: Any, **changes: Any) -> Any:
    with tarfile.open(fileobj=io.BytesIO(archive(*arguments, **changes))) as tar:
        stream = tar.extractfile("metadata.yaml")
        assert stream is not None
        return yaml.safe_load(stream)


def test_the_metadata_comes_first_and_no_name_begins_with_a_dot() -> None:
    with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
        names = tar.getnames()
    assert names[:2] == ["metadata.yaml", "rootfs"]
    assert {name.partition("/")[0] for name in names} == {"metadata.yaml", "rootfs"}


def test_the_metadata_says_what_the_manual_wants_and_what_people_look_for() -> None:
    assert metadata() == {
        "architecture": "x86_64",
        "creation_date": 1770091505 + 1,
        "properties": {
            "architecture": "x86_64",
            "description": "registry.example.com:8443/acme/greet:1.0 (linux/amd64)",
            "name": "acme/greet",
            "release": "1.0",
        },
    }


@pytest.mark.parametrize(
    ("created", "date"),
    [
        ("2026-02-03T04:05:06Z", 1770091506),
        ("2026-02-03T04:05:06.999999999Z", 1770091506),
        ("2026-02-03T05:05:06+01:00", 1770091506),
        ("1970-01-01T00:00:00Z", 1),
        ("1969-12-31T23:59:59Z", 1),
        ("0001-01-01T00:00:00Z", 1),
        ("0001-01-01T00:00:00+14:00", 1),
        ("9999-12-31T23:59:59-14:00", 253402351199),
        ("2026-02-30T04:05:06Z", 1),
        ("yesterday", 1),
        (None, 1),
    ],
)
def test_the_date_is_the_image_s_and_never_one_that_importers_take_for_none(created: str | None, date: int) -> None:
    assert metadata({**CONFIG, "created": created})["creation_date"] == date


@pytest.mark.parametrize(
    ("platform", "architecture"),
    [
        ("linux/amd64", "x86_64"),
        ("linux/amd64/v3", "x86_64"),
        ("linux/386", "i686"),
        ("linux/arm64", "aarch64"),
        ("linux/arm64/v9", "aarch64"),
        ("linux/arm/v6", "armv6l"),
        ("linux/arm/v7", "armv7l"),
        ("linux/arm", "armv7l"),
        ("linux/ppc64le", "ppc64le"),
        ("linux/s390x", "s390x"),
        ("linux/riscv64", "riscv64"),
        ("linux/loong64", "loongarch64"),
    ],
)
def test_the_architecture_has_the_kernel_s_name(platform: str, architecture: str) -> None:
    said = metadata(platform=Platform.parse(platform))
    assert said["architecture"] == said["properties"]["architecture"] == architecture


@pytest.mark.parametrize("platform", ["linux/arm/v5", "linux/wasm", "windows/amd64", "freebsd/amd64", "darwin/arm64"])
def test_a_platform_without_a_name_is_refused_and_named(platform: str) -> None:
    with pytest.raises(NoIncusArchitecture, match=platform):
        archive(platform=Platform.parse(platform))


@pytest.mark.parametrize(
    "tag", ["1.0", "yes", "1e3", 'a"b\\c', "größer 🐳", "a: b #c", "\x00\x1b\x7f\x85\u2028\ufeff\ufffe\U0010ffff", ""]
)
def test_texts_are_read_back_as_they_are(tag: str) -> None:
    assert metadata(tag=tag)["properties"]["release"] == tag


# --- LXD --------------------------------------------------------------------------------------------------------------


class LXD:
    """An LXD in a folder of its own, which asks nobody in the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        nowhere = "http://127.0.0.1:9"
        self._environment = {
            "LXD_DIR": str(folder / "lxd"),
            "LXD_CONF": str(folder / "conf"),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "http_proxy": nowhere,
            "https_proxy": nowhere,
        }
        (folder / "lxd").mkdir()
        # What it mounts is gone with its namespace.
        command = [program("unshare"), "--mount", "--propagation", "private", program("lxd"), "--group", "root"]
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log)
        self._run([program("lxd"), "waitready", "--timeout", "300"])

    def __call__(self, *arguments: str) -> str:
        return self._run([program("lxc"), *arguments])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False, timeout=600, cwd=self.folder
        )
        if done.returncode != 0:
            pytest.fail(f"{command} exits with {done.returncode}: {done.stderr}\n{(self.folder / 'log').read_text()}")
        return done.stdout

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def lxd() -> Iterator[LXD]:
    # A socket takes no path of more than 107 characters, and pytest's may have more.
    with tempfile.TemporaryDirectory(prefix="lxd") as folder:
        lxd = LXD(Path(folder))
        try:
            yield lxd
        finally:
            lxd.stop()


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.NONE])
def test_lxd_imports_the_image_under_the_digest_of_its_bytes(lxd: LXD, compression: Compression) -> None:
    image = b"".join(compressed(iter([archive(tag=f"for-{compression}")]), compression))
    path = lxd.folder / f"image-{compression}"
    path.write_bytes(image)
    fingerprint = hashlib.sha256(image).hexdigest()
    assert fingerprint in lxd("image", "import", str(path))
    [seen] = [each for each in json.loads(lxd("image", "list", "--format=json")) if each["fingerprint"] == fingerprint]
    assert seen["architecture"] == "x86_64"
    assert seen["type"] == "container"
    assert seen["created_at"] == "2026-02-03T04:05:06Z"
    assert seen["properties"]["name"] == "acme/greet"
    assert seen["properties"]["release"] == f"for-{compression}"


def test_lxd_takes_an_image_without_a_date(lxd: LXD) -> None:
    path = lxd.folder / "dateless"
    path.write_bytes(archive({"config": None}))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in lxd("image", "import", str(path))


def test_lxd_unpacks_the_image_for_an_instance(lxd: LXD) -> None:
    path = lxd.folder / "image"
    own = Platform("linux", os.uname().machine)  # of others LXD makes no instances
    path.write_bytes(archive(tag="to-be-unpacked", platform=own))
    lxd("image", "import", str(path), "--alias", "unpacked")
    lxd("storage", "create", "default", "dir")
    lxd("init", "unpacked", "instance", "--storage", "default")
    lxd("file", "pull", "instance/etc/motd", str(lxd.folder / "motd"))
    assert (lxd.folder / "motd").read_bytes() == b"x" * 70_000
    lxd("delete", "instance")
