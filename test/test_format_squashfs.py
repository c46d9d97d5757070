"""squashfs: what unsquashfs and rdsquashfs find in it, held against the tar of the same layers."""

import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from formats.formatter import Rootfs
from formats.program import Program
from formats.programformatter import ProgramMissing
from formats.squashfs import MKSQUASHFS, TAR2SQFS, Squashfs, TimeNotOnSquashfs
from formats.testing import MemoryRootfs, source_image
from test import layers, model
from test.clients import run
from test.merging import merger_of
from util.streamlayerformat import StreamLayerMerger

IMAGE = source_image()
SQUASHFS = Squashfs()
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 6, 0xFFFFFFFF) for tag in (1, 4, 32))
EVERYTHING = [
    layers.directory(b"./", mode=0o750, uid=7, gid=8, mtime_ns=1_700_000_000_000_000_000),
    layers.directory(b"d", mode=0o1777, uid=65536, gid=3_000_000),
    layers.file(b"d/setuid", b"#!" * 5000, mode=0o6755, uid=1_000_000, mtime_ns=1_234_567_890_123_456_789),
    layers.hardlink(b"d/second", b"d/setuid"),
    layers.hardlink(b"third", b"d/setuid"),
    layers.file(b"empty"),
    layers.file(b"large", b"0123456789" * 50_000),
    layers.file(b"old", b"o", mtime_ns=-1_500_000_000),
    layers.file(b"beyond", b"f", mtime_ns=(1 << 33) * 10**9),
    layers.symlink(b"short", b"d/setuid"),
    layers.symlink(b"longest", b"t" * 4000),
    layers.character_device(b"null", 1, 3, mode=0o666),
    layers.block_device(b"sda", 8, 300),
    layers.fifo(b"pipe"),
    layers.file("größer".encode(), b"u"),
    layers.file(b"\xff\xfe latin", b"l"),
    layers.file(b'quoted " \\', b"n"),
    layers.file(b"n" * 255, b"l"),
]


def made(rootfs: Rootfs, path: Path, formatter: Squashfs = SQUASHFS) -> Path:
    path.write_bytes(b"".join(formatter.stream(IMAGE, rootfs, folder=str(path.parent / "spool"))))
    assert list((path.parent / "spool").iterdir()) == []
    return path


def unpacked(path: Path) -> model.Listing:
    """Return what is in the file system, unpacked by unsquashfs."""
    folder = path.parent / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    run("unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-dest", str(folder), str(path))
    return model.listing_of_folder(bytes(folder))


def expected(merger: StreamLayerMerger) -> model.Listing:
    """Return what should be found: whole seconds since 1970, as long as 32 bits last."""
    tar = model.as_on_disk(model.listing_of_tar(b"".join(merger.get_generator())))
    return {
        path: replace(listed, mtime_ns=min(max(listed.mtime_ns // 10**9, 0), (1 << 32) - 1) * 10**9, xattrs=())
        for path, listed in tar.items()
    }


def test_everything_is_as_in_the_tar(tmp_path: Path) -> None:
    merger = merger_of([layers.layer(*EVERYTHING)])
    assert model.differences(expected(merger), unpacked(made(merger, tmp_path / "image"))) == []


def test_what_upper_layers_change_is_changed(tmp_path: Path) -> None:
    upper = [layers.whiteout(b"d/setuid"), layers.directory(b"d", mode=0o700), layers.file(b"d/new", b"1")]
    merger = merger_of([layers.layer(*EVERYTHING), layers.layer(*upper)])
    assert model.differences(expected(merger), unpacked(made(merger, tmp_path / "image"))) == []


def test_extended_attributes_are_kept_as_far_as_squashfs_has_them(tmp_path: Path) -> None:
    capability = bytes(range(20))
    entries = [
        layers.file(b"capable", b"c", xattrs={b"security.capability": capability}),
        layers.file(b"shared", b"c", xattrs={b"system.posix_acl_access": ACL, b"user.kept": b"1"}),
    ]
    image = made(merger_of([layers.layer(*entries)]), tmp_path / "image")
    kept = run("rdsquashfs", "--xattr", "capable", str(image)).lower()
    assert kept == b"security.capability=0x" + capability.hex().encode() + b"\n"
    assert run("rdsquashfs", "--xattr", "shared", str(image)) == b"user.kept=1\n"
    assert run("rdsquashfs", "--cat", "shared", str(image)) == b"c"


def test_rdsquashfs_and_unsquashfs_list_it(tmp_path: Path) -> None:
    image = made(MemoryRootfs(), tmp_path / "image")
    assert b"file bin/sh 0644 0 0\n" in run("rdsquashfs", "--describe", str(image))
    assert b"squashfs-root/etc/passwd" in run("unsquashfs", "-ll", str(image))
    assert b"Compression gzip" in run("unsquashfs", "-s", str(image))


def test_an_image_of_nothing_is_a_file_system(tmp_path: Path) -> None:
    listing = unpacked(made(MemoryRootfs({}), tmp_path / "image"))
    assert [(path, listed.mode, listed.mtime_ns) for path, listed in listing.items()] == [(b".", 0o755, 0)]


class Recorded(Squashfs):
    """With another number of compressors than there are processors."""

    def arguments(self, program: Program, image: object, rootfs: object) -> Sequence[str]:
        return ["--num-jobs", "5", *super().arguments(program, IMAGE, MemoryRootfs())]


def test_the_bytes_do_not_depend_on_how_many_compress(tmp_path: Path) -> None:
    files = {f"f{at}": b"%d" % at * (at * 37 % 60_000) for at in range(200)}
    one, other = made(MemoryRootfs(files), tmp_path / "one"), made(MemoryRootfs(files), tmp_path / "two", Recorded())
    assert one.read_bytes() == other.read_bytes()


# --- Which program ----------------------------------------------------------------------------------------------------


class Either(Squashfs):
    """As it is where there is no tar2sqfs. Debian 12 has a mksquashfs that will do for what is plain."""

    programs = (replace(TAR2SQFS, name="tar3sqfs"), replace(MKSQUASHFS, oldest=(4, 5)))


PLAIN = [
    layers.directory(b"d"),
    layers.file(b"d/setuid", b"#!" * 5000, mode=0o6755, uid=1000, mtime_ns=1_234_567_890_000_000_000),
    layers.hardlink(b"third", b"d/setuid"),
    layers.symlink(b"short", b"d/setuid"),
    layers.character_device(b"null", 1, 3, mode=0o666),
]


def test_mksquashfs_makes_it_where_there_is_no_tar2sqfs(tmp_path: Path) -> None:
    merger = merger_of([layers.layer(*PLAIN)])
    assert (Either().program or "").startswith("mksquashfs 4.")
    images = [made(merger, tmp_path / name, Either()) for name in ("one", "two")]
    assert images[0].read_bytes() == images[1].read_bytes()
    listing = unpacked(images[0])
    del listing[b"."]
    assert model.differences(expected(merger), listing) == []


def test_mksquashfs_is_told_what_the_root_is() -> None:
    root = layers.directory(b"./", mode=0o750, uid=7, gid=8, mtime_ns=1_700_000_000_000_000_000)
    for entries, said in ((PLAIN, "755 0 0 0"), ([root, *PLAIN], "750 7 8 1700000000")):
        arguments = SQUASHFS.arguments(MKSQUASHFS, IMAGE, merger_of([layers.layer(*entries)]))
        told = [arguments[arguments.index(f"-root-{each}") + 1] for each in ("mode", "uid", "gid", "time")]
        assert " ".join(told) == said


@pytest.mark.parametrize("seconds", [-1, 1 << 32])
def test_a_time_that_mksquashfs_would_turn_into_another_is_refused(seconds: int) -> None:
    merger = merger_of([layers.layer(layers.file(b"odd", mtime_ns=seconds * 10**9))])
    with pytest.raises(TimeNotOnSquashfs, match=f"the time of 'odd' is {seconds} s"):
        Either().stream(IMAGE, merger, folder="/nonexistent")


def test_an_old_mksquashfs_will_not_do() -> None:
    version = run("mksquashfs", "-version").decode().split()[2]
    old = tuple(map(int, version.split("."))) < (4, 6)
    assert (MKSQUASHFS.missing is not None) == old
    assert not old or MKSQUASHFS.missing == f"mksquashfs {version} is older than 4.6"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have no program on the PATH."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("PATH", folder)
        yield


def test_without_a_program_it_says_which_it_wants(without: None) -> None:
    assert SQUASHFS.unavailable == (
        "tar2sqfs is not installed (Debian package squashfs-tools-ng); "
        "mksquashfs is not installed (Debian package squashfs-tools)"
    )
    assert SQUASHFS.program is None
    with pytest.raises(ProgramMissing, match="squashfs cannot be made here: tar2sqfs is not installed"):
        SQUASHFS.stream(IMAGE, MemoryRootfs(), folder="/nonexistent")
