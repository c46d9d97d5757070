"""ext4: what e2fsck finds in it, and what debugfs lists of it, held against the tar of the same layers."""

import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from formats.ext4 import SPARE, Ext4Disk
from formats.ext4layout import Tree
from formats.ext4structs import BLOCK, MAX_LINKS, NotOnExt4
from formats.formatter import InvalidOption, Rootfs
from formats.testing import MemoryRootfs, source_image
from test import layers, model
from test.clients import run
from test.ext4image import Ext4Image
from test.layers import Entry
from test.merging import merger_of
from test.strategies import Stack, archives, examples, stacks
from util.digest import Digest, Readable
from util.layerindex import DIRECTORY, FILE, LINK
from util.streamlayerformat import LayerSource, StreamLayerMerger
from util.written import Written

IMAGE = source_image()
SMALL = 1 << 20
DISK = Ext4Disk(SMALL)


def disk_of(rootfs: Rootfs, path: Path, disk: Ext4Disk = DISK) -> Path:
    """Write the file system, have it checked, and return its path."""
    size = 0
    with path.open("wb") as file:
        for chunk in disk.stream(IMAGE, rootfs, folder="/nonexistent"):
            size += file.write(chunk)
    assert size == disk.size(IMAGE, rootfs)
    checked(path)
    return path


def checked(path: Path) -> None:
    """Fail where e2fsck finds anything at all."""
    said = run("e2fsck", "-fn", str(path)).decode()
    lines = [line for line in said.splitlines() if not line.startswith(("Pass ", f"{path}: ")) and line]
    assert lines == []


def expected(merger: StreamLayerMerger) -> model.Listing:
    """Return what should be found of a root file system: the tar's, as far as ext4 has words for it."""
    tar = model.as_on_disk(model.listing_of_tar(b"".join(merger.get_generator())))
    found = {path: as_on_ext4(listed) for path, listed in tar.items()}
    found.setdefault(b".", model.Listed("directory", 0o755, 0, 0, 0, names=(b".",)))
    lost = model.Listed("directory", 0o700, 0, 0, 0, names=(b"lost+found",))
    found.setdefault(b"lost+found", lost)
    return found


def as_on_ext4(listed: model.Listed) -> model.Listed:
    first, last = -(1 << 31), (1 << 34) - (1 << 31) - 1
    seconds = listed.mtime_ns // 10**9
    ours = (b"user.", b"trusted.", b"security.", b"system.posix_acl_access", b"system.posix_acl_default")
    return replace(
        listed,
        mtime_ns=listed.mtime_ns if first <= seconds <= last else max(first, min(seconds, last)) * 10**9,
        xattrs=tuple(each for each in listed.xattrs if each[0].startswith(ours)),
    )


def differences(stack: Sequence[Sequence[Entry | bytes]], path: Path) -> list[str]:
    merger = merger_of([layers.layer(*entries) for entries in stack])
    return model.differences(expected(merger), Ext4Image(disk_of(merger, path)).listing())


# --- What is in it ----------------------------------------------------------------------------------------------------


def acl(nobody: int) -> bytes:
    """Return an access control list as the system calls have it, `nobody` where an entry is nobody's in particular."""
    entries = (1, nobody), (2, 1000), (4, nobody), (8, 2_000_000), (16, nobody), (32, nobody)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 6, who) for tag, who in entries)


EVERYTHING = [
    layers.directory(b"./", mode=0o750, uid=7, gid=8, mtime_ns=1_700_000_000_000_000_000),
    layers.directory(b"d", mode=0o1777, uid=65536, gid=3_000_000_000, xattrs={b"user.folder": b"of mine"}),
    layers.file(b"d/setuid", b"#!" * 5000, mode=0o6755, uid=1_000_000, mtime_ns=1_234_567_890_123_456_789),
    layers.hardlink(b"d/second", b"d/setuid"),
    layers.hardlink(b"third", b"d/setuid"),
    layers.file(b"empty"),
    layers.file(b"block", b"b" * BLOCK),
    layers.file(b"more", b"m" * (BLOCK + 1)),
    layers.file(b"old", b"o", mtime_ns=-1_500_000_000),
    layers.file(b"far", b"f", mtime_ns=10_000_000_000 * 10**9 + 7),
    layers.file(b"beyond", b"f", mtime_ns=20_000_000_000 * 10**9),
    layers.symlink(b"short", b"d/setuid"),
    layers.symlink(b"edge", b"t" * 59),
    layers.symlink(b"longer", b"t" * 60),
    layers.symlink(b"longest", b"t" * 4095),
    layers.hardlink(b"short too", b"short"),
    layers.character_device(b"null", 1, 3, mode=0o666),
    layers.block_device(b"sda", 8, 300),
    layers.character_device(b"large", 4000, 1_000_000),
    layers.fifo(b"pipe"),
    layers.file(b"capable", b"c", xattrs={b"security.capability": bytes(range(20))}),
    layers.file(b"bare", b"c", xattrs={b"user.empty": b"", b"user.x": b"1"}),
    layers.file(b"shared", b"c", xattrs={b"system.posix_acl_access": acl(0)}),
    layers.file(b"many", b"c", xattrs={b"user.%d" % at: b"v" * at for at in range(60)}),
    layers.file(b"trusting", b"c", xattrs={b"trusted.overlay.opaque": b"y", b"security.selinux": b"a:b:c:s0\0"}),
    layers.file(b"apple", b"c", xattrs={b"com.apple.quarantine": b"1", b"user.kept": b"1"}),
    layers.file("größer".encode(), b"u"),
    layers.file(b"\xff\xfe latin", b"l"),
    layers.file(b'new\nline "quoted" back\\slash', b"n"),
    layers.file(b"n" * 255, b"l"),
]


def test_everything_is_as_in_the_tar(tmp_path: Path) -> None:
    assert differences([EVERYTHING], tmp_path / "disk") == []


def test_what_upper_layers_change_is_changed(tmp_path: Path) -> None:
    upper = [layers.whiteout(b"d/setuid"), layers.directory(b"d", mode=0o700), layers.file(b"d/new", b"1")]
    assert differences([EVERYTHING, upper], tmp_path / "disk") == []


@examples(40)
@given(stack=stacks())
def test_any_stack_is_as_in_its_tar(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> None:
    merger = merger_of(archives(model.mended(stack)[0]))
    path = tmp_path_factory.mktemp("any") / "disk"
    try:
        disk = disk_of(merger, path)
        assert model.differences(expected(merger), Ext4Image(disk).listing()) == []
    finally:
        path.unlink()


def test_nobody_in_particular_is_written_in_two_ways() -> None:
    blocks = [b"".join(disk_with({b"system.posix_acl_access": acl(nobody)})) for nobody in (0, 0xFFFFFFFF)]
    assert blocks[0] == blocks[1]


def disk_with(xattrs: Mapping[bytes, bytes]) -> list[bytes]:
    return list(DISK.stream(IMAGE, merger_of([layers.layer(layers.file(b"x", xattrs=xattrs))]), folder="/nonexistent"))


def test_a_lost_and_found_of_the_image_is_the_file_system_s(tmp_path: Path) -> None:
    own = [
        layers.file(b"a", b"1"),
        layers.directory(b"lost+found", mode=0o755, uid=5),
        layers.file(b"lost+found/x", b"found"),
    ]
    assert differences([own], tmp_path / "disk") == []
    assert b"Inode: 11 " in run("debugfs", "-R", "stat lost+found", str(tmp_path / "disk"))


# --- How large it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spare", [0, 5000, SMALL, SPARE])
def test_it_has_the_spare_room_that_it_promises_and_not_much_more(spare: int, tmp_path: Path) -> None:
    for content in (b"", b"x" * (3 << 20)):
        merger = merger_of([layers.layer(layers.file(b"x", content))])
        said = run("dumpe2fs", "-h", str(disk_of(merger, tmp_path / "disk", Ext4Disk(spare)))).decode()
        free = next(int(line.split()[-1]) for line in said.splitlines() if line.startswith("Free blocks:"))
        inodes = next(int(line.split()[-1]) for line in said.splitlines() if line.startswith("Free inodes:"))
        assert spare <= free * BLOCK < spare + 64 * BLOCK
        assert spare // (16 << 10) <= inodes < spare // (16 << 10) + 32


def test_it_can_be_made_larger_and_smaller(tmp_path: Path) -> None:
    disk = disk_of(merger_of([layers.layer(*EVERYTHING)]), tmp_path / "disk")
    before = Ext4Image(disk).listing()
    os.truncate(disk, 20 << 30)
    for options in ([], ["-M"]):
        run("resize2fs", *options, str(disk))
        checked(disk)
        assert model.differences(before, Ext4Image(disk).listing()) == []


@pytest.mark.parametrize("count", [1, 3, 5_000])
def test_a_directory_of_any_size_is_sound(count: int, tmp_path: Path) -> None:
    rootfs = MemoryRootfs({f"{at:06}" * (1 + at % 40): b"" for at in range(count)})
    assert len(Ext4Image(disk_of(rootfs, tmp_path / "disk")).listing()) == count + 2


def test_more_directories_in_one_than_it_can_count_links_of_are_not_counted() -> None:
    for count, links in ((MAX_LINKS - 4, MAX_LINKS - 1), (MAX_LINKS - 3, 1)):
        tree = Tree(Written(b"%d" % at, DIRECTORY, 0o755, 0, 0, 0) for at in range(count))
        assert struct.unpack_from("<H", tree.root.rendered(), 26) == (links,)


class Imagined:
    """A root file system of entries alone: the content of a file is what `content` says, wherever it stands."""

    def __init__(self, entries: Sequence[Written], content: bytes = b"\xa5") -> None:
        self._entries, self._content = entries, content
        self.diff_id = Digest.of(b"")
        self.size = max((entry.payload + entry.size for entry in entries), default=0)

    def entries(self) -> Iterator[Written]:
        return iter(self._entries)

    def get_generator(self) -> Iterator[bytes]:
        return self.get_range(0, self.size)

    def kept_file(self, path: bytes) -> bytes | None:
        return None

    def folder(self, path: bytes) -> tuple[int, int, int] | None:
        return None

    def get_range(self, offset: int, length: int) -> Iterator[bytes]:
        while length > 0:
            part = (self._content * (1 << 20))[: min(length, 1 << 20)]
            yield part
            length -= len(part)


def imagined(*sizes: int) -> Imagined:
    entries, at = [], 0
    for number, size in enumerate(sizes):
        entries.append(Written(b"%d" % number, FILE, 0o644, 0, 0, 0, size, at))
        at += size
    return Imagined(entries)


def sparse(rootfs: Imagined, path: Path, disk: Ext4Disk = DISK) -> Path:
    """Write the file system with holes where it has zeros."""
    with path.open("wb") as file:
        for chunk in disk.stream(IMAGE, rootfs, folder="/nonexistent"):
            if chunk != bytes(len(chunk)):
                file.write(chunk)
            else:
                file.seek(len(chunk), os.SEEK_CUR)
        file.truncate(disk.size(IMAGE, rootfs))
    return path


@pytest.mark.parametrize(("text", "spare"), [("0", 0), ("512M", 512 << 20), ("2048M", 2 << 30)])
def test_who_asks_may_say_how_much_is_spare(text: str, spare: int, tmp_path: Path) -> None:
    path = sparse(imagined(1 << 20, 1), tmp_path / "disk", Ext4Disk().with_options({"spare": text}))
    checked(path)
    said = run("dumpe2fs", "-h", str(path)).decode()
    free = next(int(line.split()[-1]) for line in said.splitlines() if line.startswith("Free blocks:"))
    assert spare <= free * BLOCK < spare + 64 * BLOCK
    assert path.stat().st_size < 1.04 * spare + (32 << 20)


def test_spare_room_is_one_however_it_is_written_and_nothing_where_it_is_the_default() -> None:
    disk = Ext4Disk()
    for text in ("1G", "1024M", "1g", "1GiB", str(1 << 30)):
        assert disk.with_options({"spare": text}).chosen == {"spare": "1073741824"}
    for text in ("64M", str(SPARE)):
        assert disk.with_options({"spare": text}).chosen == {}
    assert disk.with_options({"spare": "0"}).chosen == {"spare": "0"}


@pytest.mark.parametrize(
    "text", ["", "-1", "lots", "1.5G", "1P", "٣", "32G", "3M", "512K", "17592186044417", "9" * 5000]
)
def test_spare_room_that_there_cannot_be_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(
        InvalidOption, match=f"^spare is '{text[:1000]}.*'; allowed: 0, or 1M, 2M, 4M and so on up to 16G"
    ):
        Ext4Disk().with_options({"spare": text})


def test_spare_room_that_does_not_fit_beside_the_files_is_refused() -> None:
    disk = Ext4Disk(16 << 40)
    with pytest.raises(NotOnExt4, match="with 17592186044416 bytes to spare, is larger than an ext4 file system"):
        disk.size(IMAGE, imagined(1))


def test_very_much_spare_room_is_laid_out_as_fast() -> None:
    disk, rootfs = Ext4Disk(1 << 40), imagined(1)
    begin = time.thread_time()
    assert next(disk.stream(IMAGE, rootfs, folder="/nonexistent"))
    assert disk.size(IMAGE, rootfs) > 1 << 40
    assert time.thread_time() - begin < 20


@pytest.mark.parametrize(
    "sizes",
    [
        [1 << 27],
        [(1 << 27) - (5 << 20), *[BLOCK] * 900],  # one of many ends where the first copy of the superblock stands
        [460 << 20, 1],  # in more pieces than an inode has room for
    ],
)
def test_files_that_cross_groups_and_copies_of_the_superblock_are_sound(sizes: list[int], tmp_path: Path) -> None:
    disk = sparse(imagined(*sizes), tmp_path / "disk")
    checked(disk)
    for number in {0, len(sizes) - 1}:
        out = tmp_path / "out"
        run("debugfs", "-R", f'dump <{12 + number}> "{out}"', str(disk))
        assert out.stat().st_size == sizes[number]
        with out.open("rb") as file:
            assert all(not chunk.strip(b"\xa5") for chunk in iter(lambda: file.read(1 << 20), b""))


def test_each_copy_of_the_superblock_is_good_for_a_repair(tmp_path: Path) -> None:
    disk = sparse(imagined(500 << 20), tmp_path / "disk")
    for group in (1, 3):
        said = run("dumpe2fs", "-h", "-o", f"superblock={group * 32768}", "-o", "blocksize=4096", str(disk))
        assert b"Filesystem state:         clean" in said
    with disk.open("r+b") as file:
        file.write(bytes(8192))
    run("e2fsck", "-fy", "-b", "32768", "-B", "4096", str(disk), complaint=b"")
    checked(disk)


def test_many_small_things_make_as_many_groups_as_their_inodes_need(tmp_path: Path) -> None:
    rootfs = Imagined([Written(b"%d" % at, FILE, 0o644, 0, 0, 0) for at in range(70_000)])
    disk = sparse(rootfs, tmp_path / "disk")
    checked(disk)


def test_a_terabyte_is_laid_out_as_fast() -> None:
    rootfs = imagined(*[1 << 36] * 16)
    begin = time.thread_time()
    assert DISK.size(IMAGE, rootfs) > 1 << 40
    assert time.thread_time() - begin < 20


# --- Ranges -----------------------------------------------------------------------------------------------------------


NAMES = (b"a", b"b", b"c")


def noted(source: LayerSource, name: bytes, opened: list[bytes]) -> LayerSource:
    """Return `source`, which tells when it is opened."""

    def opens() -> Readable:
        opened.append(name)
        return source.open()

    return replace(source, open=opens)


def test_a_range_opens_only_the_layers_whose_files_lie_in_it() -> None:
    opened: list[bytes] = []
    merger = merger_of([layers.layer(layers.file(name, name * 9000)) for name in NAMES])
    merger._layers = [
        noted(source, name, opened) for source, name in zip(merger._layers, (b"a", b"b", b"c"), strict=True)
    ]
    whole = b"".join(DISK.stream(IMAGE, merger, folder="/nonexistent"))
    assert opened == list(NAMES)
    at = whole.index(b"b" * 9000)
    ranges: list[tuple[int, int, list[bytes]]] = [
        (0, 4096, []),
        (at + 100, at + 8000, [b"b"]),
        (at - 1, at + 1, [b"b"]),
        (at + 8999, len(whole), [b"b", b"c"]),
    ]
    for begin, end, wanted in ranges:
        opened.clear()
        assert b"".join(DISK.range_generator(IMAGE, merger, begin, end - begin)) == whole[begin:end]
        assert opened == wanted


# --- What it has no words for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([layers.file(b"d/" + b"n" * 256)], "the name of .d/nnn"),
        ([layers.symlink(b"far", b"t" * 4096)], "the target of the symlink .far. is longer"),
        ([layers.file(b"lost+found")], r".lost\+found. is no directory"),
        ([layers.file(b"full", xattrs={b"user.a": b"v" * 4096})], "the extended attributes of .full. take more"),
        ([layers.file(b"f", xattrs={b"user." + b"n" * 300: b"v"})], "the extended attributes of .f. take more"),
        (
            [layers.file(b"acl", xattrs={b"system.posix_acl_default": b"v"})],
            "list of .acl. cannot be read",
        ),
        (
            [layers.file(b"acl", xattrs={b"system.posix_acl_access": b"\2\0\0\0abc"})],
            "list of .acl. cannot be read",
        ),
    ],
)
def test_what_it_has_no_room_for_is_refused_by_name(entries: list[Entry], said: str) -> None:
    merger = merger_of([layers.layer(*entries)])
    for ask in (DISK.check, DISK.size):
        with pytest.raises(NotOnExt4, match=said):
            ask(IMAGE, merger)
    with pytest.raises(NotOnExt4, match=said):
        DISK.stream(IMAGE, merger, folder="/nonexistent")


def test_more_names_of_one_file_than_it_has_are_refused() -> None:
    linked = [Written(b"l%d" % at, LINK, 0, 0, 0, 0, link=b"f") for at in range(MAX_LINKS)]
    with pytest.raises(NotOnExt4, match=r".f. has more names than the 65000"):
        Tree([Written(b"f", FILE, 0o644, 0, 0, 0), *linked])
    assert len(Tree([Written(b"f", FILE, 0o644, 0, 0, 0), *linked[1:]]).nodes) == 2


def test_a_file_system_of_more_than_16_tib_is_refused() -> None:
    for sizes in ([1 << 44], [1 << 36] * 300):
        with pytest.raises(NotOnExt4, match="larger than"):
            DISK.size(IMAGE, imagined(*sizes))
