"""What we make, read by the programs that people have: actool, skopeo, umoci, podman.

The law: the root file systems here are made by Python's tarfile; merged layers are tried in other tests.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from formats.aci import ACIImage
from formats.rootfs import RootfsTar
from formats.squashed import SquashedDockerImage
from formats.tarimageformatter import SourceImage, TarImageFormatter
from formats.testing import CONFIG, FILES, MemoryRootfs, source_image
from test.clients import program, run
from util.compression import Compression, compressed
from util.oci import Platform

ODD = {
    "created": "yesterday",
    "author": "Ünal 🐳",
    "config": {
        "User": "nobody",
        "Env": ["A=1", "A=2", "NOTHING", "1=2", "B=x=y"],
        "Cmd": ["größer", "a b", "$(reboot)"],
        "WorkingDir": "srv",
        "ExposedPorts": {"80": {}, "80/tcp": {}, "80/udp": {}, "8000-8010/tcp": {}, "65535": {}, "http": {}},
        "Volumes": {"/a": {}, "/A": {}, "/": {}, "/1": {}, "/1.": {}},
        "Labels": {"ключ": "значение", "": "", "a": None},
    },
}


def written(formatter: TarImageFormatter, path: Path, image: SourceImage) -> Path:
    rootfs = MemoryRootfs(path_prefix=formatter.path_prefix)
    path.write_bytes(b"".join(formatter.stream_generator(image, rootfs)))
    return path


# --- actool -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        source_image(),
        source_image(ODD),
        source_image({}),
        source_image({"config": None}, tag=f"sha256:{'0f' * 32}", host="localhost", url_scheme="http"),
        source_image(repository="a/b.c_d~e"),
        *(
            source_image(platform=Platform.parse(each))
            for each in ("linux/arm64", "linux/arm/v6", "freebsd/arm", "darwin/386")
        ),
    ],
    ids=["usual", "odd", "empty", "digest", "nested", "arm64", "armv6l", "freebsd", "darwin"],
)
def test_actool_finds_every_aci_valid(image: SourceImage, tmp_path: Path) -> None:
    aci = written(ACIImage(), tmp_path / "image.aci", image)
    run("actool", "validate", str(aci))


def test_actool_reads_the_manifest_as_it_is_meant(tmp_path: Path) -> None:
    aci = written(ACIImage(), tmp_path / "image.aci", source_image(ODD))
    read = json.loads(run("actool", "cat-manifest", str(aci)))
    assert read["name"] == "registry.example.com/acme/greet"
    assert read["app"]["exec"] == ["größer", "a b", "$(reboot)"]
    assert (read["app"]["user"], read["app"]["group"]) == ("nobody", "nobody")
    assert {each["name"]: (each["port"], each["count"]) for each in read["app"]["ports"]} == {
        "80-tcp": (80, 1),
        "80-udp": (80, 1),
        "8000-8010-tcp": (8000, 11),
        "65535-tcp": (65535, 1),
    }
    assert len({each["name"] for each in read["app"]["mountPoints"]}) == 5


# --- skopeo and umoci -------------------------------------------------------------------------------------------------


@pytest.fixture
def squashed(tmp_path: Path) -> Path:
    return written(SquashedDockerImage(), tmp_path / "squashed.tar", source_image())


def test_skopeo_reads_the_squashed_archive(squashed: Path) -> None:
    seen = json.loads(run("skopeo", "inspect", "--config", "--raw", f"docker-archive:{squashed}"))
    assert seen["config"] == CONFIG["config"]
    assert seen["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(MemoryRootfs().content).hexdigest()]
    assert [entry.get("empty_layer", False) for entry in seen["history"]] == [True, True, True, False]
    shown = json.loads(run("skopeo", "inspect", f"docker-archive:{squashed}"))
    assert (shown["Architecture"], shown["Os"], len(shown["Layers"])) == ("amd64", "linux", 1)


def test_skopeo_finds_the_image_by_its_name(squashed: Path) -> None:
    name = "registry.example.com:8443/acme/greet:1.0.squash"
    assert json.loads(run("skopeo", "list-tags", f"docker-archive:{squashed}"))["Tags"] == [name]
    run("skopeo", "inspect", f"docker-archive:{squashed}:{name}")


def test_umoci_unpacks_what_skopeo_has_copied(squashed: Path, tmp_path: Path) -> None:
    run("skopeo", "copy", "-q", f"docker-archive:{squashed}", f"oci:{tmp_path}/layout:latest")
    run("umoci", "unpack", "--image", f"{tmp_path}/layout:latest", f"{tmp_path}/bundle")
    unpacked = tmp_path / "bundle" / "rootfs"
    assert (unpacked / "etc" / "motd").read_bytes() == b"x" * 70_000
    bundle = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert bundle["process"]["args"] == ["/usr/bin/greet", "--loud", "world"]
    assert bundle["process"]["cwd"] == "/home/ada"
    assert (bundle["process"]["user"]["uid"], bundle["process"]["user"]["gid"]) == (1000, 100)


def test_skopeo_copies_an_image_with_nothing_in_it(tmp_path: Path) -> None:
    image = source_image({"rootfs": {"type": "layers", "diff_ids": []}}, layer_count=0)
    path = tmp_path / "empty.tar"
    path.write_bytes(b"".join(SquashedDockerImage().stream_generator(image, MemoryRootfs({}))))
    run("skopeo", "copy", "-q", f"docker-archive:{path}", f"oci:{tmp_path}/layout:latest")


# --- podman -----------------------------------------------------------------------------------------------------------


class Podman:
    """podman with a storage of its own, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._options = ["--storage-driver", "vfs", "--root", str(folder / "root"), "--runroot", str(folder / "run")]

    def __call__(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return run("podman", *self._options, *arguments, stdin=stdin)


@pytest.fixture
def podman() -> Iterator[Podman]:
    # podman takes no path of more than 50 characters here, and pytest's have more.
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        podman = Podman(Path(folder))
        yield podman
        podman("rmi", "--all", "--force")


def inspected(podman: Podman, path: Path, name: str) -> Mapping[str, Any]:
    assert name in podman("load", "-q", "-i", str(path)).decode()
    [seen] = json.loads(podman("inspect", "--type", "image", name))
    return dict(seen)


def test_podman_loads_the_squashed_archive_with_all_that_was_said_of_the_image(podman: Podman, squashed: Path) -> None:
    name = "registry.example.com:8443/acme/greet:1.0.squash"
    seen = inspected(podman, squashed, name)
    expected = {
        key: CONFIG["config"][key] for key in ("Entrypoint", "Cmd", "Env", "WorkingDir", "StopSignal", "Labels")
    }
    assert {key: seen["Config"][key] for key in expected} == expected
    assert seen["User"] == "ada"
    assert seen["Healthcheck"]["Test"] == ["CMD", "greet", "--check"]
    assert (seen["Architecture"], seen["Os"], seen["Author"]) == ("amd64", "linux", CONFIG["author"])
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", name).decode()
    assert history.splitlines()[0] == "squash registry.example.com:8443/acme/greet:1.0"
    assert "ADD base" in history


def test_podman_finds_the_files_in_what_it_has_loaded(podman: Podman, squashed: Path) -> None:
    name = "registry.example.com:8443/acme/greet:1.0.squash"
    inspected(podman, squashed, name)
    folder = Path(podman("image", "mount", name).decode().strip())
    try:
        assert (folder / "etc" / "motd").read_bytes() == b"x" * 70_000
        assert (folder / "bin" / "sh").stat().st_mode & 0o777 == 0o644
    finally:
        podman("image", "unmount", name)


def test_podman_loads_an_image_that_was_asked_for_by_its_digest(podman: Podman, tmp_path: Path) -> None:
    image = source_image({"config": {"Cmd": ["true"]}}, host="localhost", tag=f"sha256:{'0f' * 32}")
    path = written(SquashedDockerImage(), tmp_path / "squashed.tar", image)
    inspected(podman, path, f"localhost/acme/greet:sha256-{'0f' * 32}.squash")


def test_the_squashed_archive_is_read_from_a_pipe(podman: Podman, squashed: Path) -> None:
    # `curl … | podman load`: the reader cannot seek.
    assert b"greet:1.0.squash" in podman("load", stdin=squashed.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(squashed.read_bytes()), mode="r|") as tar:
        assert "manifest.json" in [member.name for member in tar]


# --- systemd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.GZIP])
def test_systemd_imports_the_root_file_system_and_starts_a_program_in_it(
    compression: Compression, tmp_path: Path
) -> None:
    """As `importctl import-tar` and `machinectl import-tar` have it done; of systemd 252 in no other compression."""
    busybox, release = Path(program("busybox")).read_bytes(), b"ID=test\n"
    rootfs = MemoryRootfs({**FILES, "bin/busybox": busybox, "etc/os-release": release})
    path = tmp_path / f"rootfs.tar{compression.suffix}"
    path.write_bytes(b"".join(compressed(RootfsTar().stream_generator(source_image(), rootfs), compression)))
    run("systemd-import", "--sync=no", f"--image-root={tmp_path}", "tar", str(path), "machine")
    (tmp_path / "machine" / "bin" / "busybox").chmod(0o755)
    quiet = ("--quiet", "--register=no", "--keep-unit", f"--machine=test-{os.getpid()}")
    told = run("systemd-nspawn", *quiet, "-D", str(tmp_path / "machine"), "/bin/busybox", "id")
    assert told.split() == [b"uid=0(root)", b"gid=0"]


@pytest.mark.parametrize("compression", list(Compression))
def test_tar_knows_the_compression_by_the_name(compression: Compression, tmp_path: Path) -> None:
    path = tmp_path / f"rootfs.tar{compression.suffix}"
    path.write_bytes(b"".join(compressed(iter([MemoryRootfs().content]), compression)))
    assert run("tar", "-taf", str(path)).decode().split() == [
        "bin/", "bin/sh", "etc/", "etc/passwd", "etc/motd", "usr/"
    ]  # fmt: skip
