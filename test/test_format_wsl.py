"""The distribution for WSL, against Microsoft's documentation: "Build a Custom Linux Distribution for WSL"."""

import configparser
import gzip
import io
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from formats.testing import CONFIG, FILES, MemoryRootfs, source_image
from formats.wsl import NoDistribution, WslDistribution
from test import layers
from test.clients import run
from test.layers import Entry, directory, file, symlink
from test.merging import source_of
from util.compression import compressed
from util.oci import Platform
from util.streamlayerformat import StreamLayerMerger

PASSWD = file(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")


def distribution(*entries: Entry, config: Mapping[str, Any] = CONFIG, **changes: Any) -> tarfile.TarFile:
    """Return the distribution of an image of one layer with users and `entries`; its size is as promised."""
    image = source_image(config, **changes)
    sources = [source_of(layers.layer(PASSWD, *entries))]
    rootfs = StreamLayerMerger(sources, changes=WslDistribution().changes(image))
    output = b"".join(WslDistribution().stream_generator(image, rootfs))
    assert len(output) == WslDistribution().size(image, rootfs)
    return tarfile.open(fileobj=io.BytesIO(output))


def read(tar: tarfile.TarFile, name: str) -> dict[str, dict[str, str]]:
    stream = tar.extractfile(name)
    assert stream is not None
    parser = configparser.ConfigParser()
    parser.read_string(stream.read().decode())
    return {section: dict(parser[section]) for section in parser.sections()}


@pytest.mark.parametrize("name", ["etc/wsl-distribution.conf", "etc/wsl.conf"])
def test_the_files_that_windows_reads_are_root_s_and_everybody_may_read_them(name: str) -> None:
    member = distribution().getmember(name)
    assert member.isfile()
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o644, 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "greet-1.0"),
        ({"repository": "team/app", "tag": "latest"}, "team-app-latest"),
        ({"tag": f"sha256:{'0f' * 32}"}, "greet-sha256-0f0f0f0f0f0f"),
        ({"tag": "1.0+größer"}, "greet-1.0-gr-er"),
    ],
)
def test_the_distribution_has_a_name_that_windows_takes(changes: Mapping[str, Any], name: str) -> None:
    assert read(distribution(**changes), "etc/wsl-distribution.conf") == {"oobe": {"defaultname": name}}
    assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)


@pytest.mark.parametrize(
    ("config", "systemd"),
    [
        ({"Cmd": ["/sbin/init"]}, "true"),
        ({"Entrypoint": ["/lib/systemd/systemd"], "Cmd": ["--system"]}, "true"),
        ({"Entrypoint": ["/usr/bin/greet"], "Cmd": ["/sbin/init"]}, "false"),
        ({"Cmd": ["/bin/sh"]}, "false"),
        ({}, "false"),
    ],
)
def test_systemd_is_started_where_the_image_s_command_is_init(config: Mapping[str, Any], systemd: str) -> None:
    assert read(distribution(config={"config": config}), "etc/wsl.conf") == {"boot": {"systemd": systemd}}


def test_what_the_image_has_of_them_stays() -> None:
    tar = distribution(
        file(b"etc/wsl.conf", b"[user]\ndefault=ada\n", mode=0o600, uid=7), symlink(b"etc/wsl-distribution.conf", b"x")
    )
    assert read(tar, "etc/wsl.conf") == {"user": {"default": "ada"}}
    assert (tar.getmember("etc/wsl.conf").mode, tar.getmember("etc/wsl.conf").uid) == (0o600, 7)
    assert tar.getmember("etc/wsl-distribution.conf").linkname == "x"
    assert len(tar.getnames()) == len({*tar.getnames()})


@pytest.mark.parametrize("resolver", [file(b"etc/resolv.conf", b"x"), symlink(b"etc/resolv.conf", b"../run/resolv")])
def test_resolv_conf_is_left_out(resolver: Entry) -> None:
    assert "etc/resolv.conf" not in distribution(resolver).getnames()


def test_all_else_is_the_image_s() -> None:
    names = distribution(directory(b"usr/"), file(b"usr/a"), file(b"etc/resolv.conf.d/a")).getnames()
    added = {"etc/wsl-distribution.conf", "etc/wsl.conf"}
    assert {*names} - added == {"etc", "etc/passwd", "etc/resolv.conf.d", "etc/resolv.conf.d/a", "usr", "usr/a"}


@pytest.mark.parametrize("platform", ["linux/arm/v7", "linux/riscv64", "windows/amd64"])
def test_a_platform_that_wsl_does_not_run_is_refused_and_named(platform: str) -> None:
    with pytest.raises(NoDistribution, match=platform):
        distribution(platform=Platform.parse(platform))


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/amd64/v3", "linux/arm64"])
def test_the_platforms_of_windows_are_taken(platform: str) -> None:
    assert distribution(platform=Platform.parse(platform)).getnames()


@pytest.mark.parametrize(
    "users", [None, b"", b"ada:x:1000:100::/:\n", b"root:x:1:0::/:\n", b"noroot:x:0:0::/:\n", b"root:x:00x:0::/:\n"]
)
def test_an_image_without_root_is_refused(users: bytes | None) -> None:
    rootfs = MemoryRootfs({"etc": None} if users is None else {"etc": None, "etc/passwd": users})
    with pytest.raises(NoDistribution, match=r"etc/passwd has no user root"):
        WslDistribution().check(source_image(), rootfs)


@pytest.mark.parametrize("users", [b"root:x:0:0::/:\n", b"a:x:1:1::/:\nroot::0:5:root:/root:/bin/sh"])
def test_root_is_found_wherever_it_stands(users: bytes) -> None:
    WslDistribution().check(source_image(), MemoryRootfs({"etc": None, "etc/passwd": users}))


def test_tar_unpacks_what_is_downloaded_with_numeric_owners(tmp_path: Path) -> None:
    image, formatter = source_image(), WslDistribution()
    rootfs = MemoryRootfs(changes=formatter.changes(image))
    path = tmp_path / "image.wsl"
    path.write_bytes(b"".join(compressed(formatter.stream_generator(image, rootfs), formatter.default_compression)))
    assert gzip.decompress(path.read_bytes()).endswith(bytes(1024))
    (tmp_path / "root").mkdir()
    run("tar", "-xpz", "--numeric-owner", "-f", str(path), "-C", str(tmp_path / "root"))
    found: Sequence[str] = sorted(str(each.relative_to(tmp_path / "root")) for each in (tmp_path / "root").rglob("*"))
    assert found == sorted([*FILES, "etc/wsl-distribution.conf", "etc/wsl.conf"])
