"""Reading tars: whatever the real programs write is understood, whatever is cut, lies or attacks is refused.

What a program wrote is checked by merging it alone and comparing the listing with the folder that it was made of.
"""

import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from test import clients, layers, model
from test.layers import (
    BLOCK,
    END,
    GNU_MAGIC,
    V7_MAGIC,
    directory,
    file,
    hardlink,
    header,
    pax_block,
    pax_header,
    symlink,
)
from test.merging import dumped, index_of, merged
from util.compression import decompressed
from util.digest import Digest
from util.layerindex import LayerLimits
from util.layerreader import read_layer_index
from util.problem import Damaged, Malformed, Problem, TooLarge
from util.storedindex import restored_from
from util.streamlayerformat import LayerSource, StreamLayerMerger


def listing_of(archive: bytes) -> model.Listing:
    """Return what is read from an archive, after every chunking of it gave the same index."""
    whole = dumped(index_of(archive))
    sizes = (1, 7, 511, 512, 513, 10_240) if len(archive) < 20_000 else (509, 4096, 100_001)
    for size in sizes:
        assert dumped(index_of(layers.in_chunks(archive, size))) == whole, f"chunks of {size} bytes"
    return model.listing_of_tar(merged([archive]))


def read_alone(*parts: layers.Entry | bytes, end: bytes = END) -> model.Listed:
    """Return the only thing that the archive of these parts holds."""
    (listed,) = listing_of(layers.layer(*parts, end=end)).values()
    return listed


def error_of(archive: bytes | Iterator[bytes], *, limits: LayerLimits | None = None) -> Problem:
    with pytest.raises(Problem) as refused:
        index_of(archive, limits=limits)
    assert "sha256:of-a-test" in str(refused.value), "the error names the layer"
    return refused.value


# --- What real programs write -----------------------------------------------------------------------------------------


def make_folder(folder: Path, *, names: Sequence[bytes] = (), devices: bool = True, xattrs: bool = False) -> None:
    """Make a folder with one of everything, and with files of these names."""
    entries = [
        directory(b"d", mode=0o1777, uid=1000, gid=1001, mtime_ns=1_600_000_000_987_654_321),
        file(b"d/empty", mode=0o600, mtime_ns=10**9),
        file(b"d/block", b"b" * 512, mode=0o4755, mtime_ns=1_500_000_000_000_000_000),
        file(b"d/odd", b"o" * 1025, uid=7, gid=8, mtime_ns=1_500_000_000_123_456_789),
        file(b"large", bytes(range(256)) * 3000, mtime_ns=10**9 + 1),
        hardlink(b"another", b"large"),
        hardlink(b"d/third", b"large"),
        symlink(b"s", b"d/odd", mtime_ns=1_400_000_000 * 10**9),
        symlink(b"outside", b"/etc/../x"),
        layers.fifo(b"pipe", mode=0o622),
        directory(b"nothing", mode=0o700),
    ]
    if devices:
        entries += [layers.character_device(b"null", 1, 3), layers.block_device(b"disk", 8, 17, mode=0o640)]
    entries += [file(name, b"%d" % at) for at, name in enumerate(names)]
    if xattrs:
        binary = {b"user.text": b"text", b"user.binary": bytes(range(256)), b"trusted.lines": b"a\nb=c\n"}
        capability = {b"security.capability": b"\x01\0\0\x02\0\x04\0\0" + bytes(12)}
        entries += [file(b"marked", b"1", xattrs=binary), directory(b"marked.d", xattrs=binary)]
        entries += [file(b"capable", b"1", xattrs=capability)]
    folder.mkdir()
    model.unpack_on_disk([entries], os.fsencode(folder))


def whole_seconds(listing: model.Listing) -> model.Listing:
    return {path: replace(listed, mtime_ns=listed.mtime_ns // 10**9 * 10**9) for path, listed in listing.items()}


LONG_NAMES = [
    b"n" * 100,
    b"n" * 101,
    b"n" * 255,
    b"/".join([b"p" * 50] * 5) + b"/" + b"q" * 120,
    b"\xff\xfe",
    "ü".encode(),
    b"a b\n",
]
SHORT_NAMES = [b"n" * 97, b"\xff\xfe", "ü".encode(), b"a b\n"]


@pytest.mark.parametrize("how", [(".",), ("--transform=s,^[.]/,,rhS", ".")], ids=["dots", "no dots"])
@pytest.mark.parametrize(
    ("format_", "names"),
    [("v7", SHORT_NAMES), ("ustar", SHORT_NAMES), ("oldgnu", LONG_NAMES), ("gnu", LONG_NAMES), ("pax", LONG_NAMES)],
)
def test_what_gnu_tar_writes_is_read(tmp_path: Path, format_: str, names: list[bytes], how: tuple[str, ...]) -> None:
    make_folder(tmp_path / "d", names=names, devices=format_ != "v7", xattrs=format_ == "pax")
    if format_ == "v7":
        (tmp_path / "d" / "pipe").unlink()
        os.utime(tmp_path / "d", ns=(0, 0))
    options = ["--xattrs", "--xattrs-include=*"] if format_ == "pax" else []
    archive = clients.run("tar", f"--format={format_}", *options, "-C", str(tmp_path / "d"), "-cf", "-", *how)
    expected = model.listing_of_folder(os.fsencode(tmp_path / "d"))
    found = model.as_on_disk(listing_of(archive))
    if format_ != "pax":
        expected, found = whole_seconds(expected), whole_seconds(found)
    assert model.differences(expected, found) == []


@pytest.mark.parametrize("format_", ["ustar", "gnutar", "pax", "rpax"])
def test_what_bsdtar_writes_is_read(tmp_path: Path, format_: str) -> None:
    names = SHORT_NAMES if format_ == "ustar" else LONG_NAMES
    make_folder(tmp_path / "d", names=names, xattrs=format_ in ("pax", "rpax"))
    archive = clients.run("bsdtar", "--format", format_, "--numeric-owner", "-C", str(tmp_path / "d"), "-cf", "-", ".")
    expected = model.listing_of_folder(os.fsencode(tmp_path / "d"))
    found = model.as_on_disk(listing_of(archive))
    if format_ != "pax":  # the restricted one has a fraction only where something else asks for a pax header
        expected, found = whole_seconds(expected), whole_seconds(found)
    assert model.differences(expected, found) == []


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(tmp_path: Path, format_: int) -> None:
    make_folder(tmp_path / "d", names=SHORT_NAMES[:2] if format_ == tarfile.USTAR_FORMAT else LONG_NAMES)
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_, encoding="utf-8", errors="surrogateescape") as tar:
        tar.add(tmp_path / "d", arcname=".")
    expected = model.listing_of_folder(os.fsencode(tmp_path / "d"))
    found = model.as_on_disk(listing_of(stream.getvalue()))
    if format_ != tarfile.PAX_FORMAT:
        expected, found = whole_seconds(expected), whole_seconds(found)
        assert model.differences(expected, found) == []
        return
    for path, listed in expected.items():  # tarfile writes times as floating point numbers
        assert abs(found[path].mtime_ns - listed.mtime_ns) < 1000
        assert replace(found[path], mtime_ns=listed.mtime_ns) == listed


def make_sparse(path: Path) -> None:
    with path.open("wb") as stream:
        for offset in range(0, 4_000_000, 400_000):
            stream.seek(offset)
            stream.write(b"data at %d" % offset * 100)
        stream.truncate(5_000_001)


@pytest.mark.parametrize(
    "options",
    [
        ("--format=oldgnu",),
        ("--format=gnu",),
        ("--format=pax", "--sparse-version=0.0"),
        ("--format=pax", "--sparse-version=0.1"),
        ("--format=pax", "--sparse-version=1.0"),
    ],
    ids=" ".join,
)
def test_sparse_files_that_gnu_tar_writes_keep_their_content_and_name(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    make_sparse(folder / "sparse")
    make_sparse(folder / ("long" * 40))
    with (folder / "hole").open("wb") as stream:
        stream.truncate(1_000_000)
    (folder / "after").write_bytes(b"after")
    archive = clients.run("tar", *options, "-S", "-C", str(folder), "-cf", "-", ".")
    assert len(archive) < 1_000_000, "tar wrote it as sparse"
    expected = whole_seconds(model.listing_of_folder(os.fsencode(folder)))
    assert model.differences(expected, whole_seconds(listing_of(archive))) == []


def test_sparse_files_that_bsdtar_writes_keep_their_content_and_name(tmp_path: Path) -> None:
    make_sparse(tmp_path / "sparse")
    archive = clients.run("bsdtar", "--format=pax", "--read-sparse", "-C", str(tmp_path), "-cf", "-", "sparse")
    assert len(archive) < 1_000_000, "bsdtar wrote it as sparse"
    assert listing_of(archive)[b"sparse"].content == (tmp_path / "sparse").read_bytes()


def test_what_go_and_docker_write_is_read() -> None:
    """Go sorts the keys of its pax headers; Docker's names have no dots before them, its folders a slash after."""
    records = [
        (b"SCHILY.xattr.security.capability", b"\x01\0\0\x02" + bytes(16)),
        (b"mtime", b"1600000000.123456789"),
        (b"path", "usr/bin/ü".encode()),
        (b"uid", b"4294967294"),
    ]
    content = b"".join(layers.pax_record(key, value) for key, value in records)
    extended = header(b"usr/bin/PaxHeaders.0/", kind=b"x", size=len(content), mode=0) + layers.padded(content)
    archive = layers.layer(
        header(b"usr/bin/", kind=b"5", mode=0o755, uname=b"root", gname=b"root"),
        extended + header(b"usr/bin/", mode=0o755, size=3, uname=b"root") + layers.padded(b"bin"),
        header(b"bin", kind=b"2", link=b"usr/bin", mode=0o777),
    )
    found = listing_of(archive)["usr/bin/ü".encode()]
    assert (found.uid, found.mtime_ns, found.content) == (2**32 - 2, 1_600_000_000_123_456_789, b"bin")
    assert found.xattrs == ((b"security.capability", b"\x01\0\0\x02" + bytes(16)),)


# --- Headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
@pytest.mark.parametrize("magic", [layers.USTAR_MAGIC, GNU_MAGIC, V7_MAGIC], ids=["ustar", "gnu", "v7"])
def test_regular_files_have_three_typeflags(kind: bytes, magic: bytes) -> None:
    found = read_alone(header(b"f", kind=kind, size=3, magic=magic) + layers.padded(b"abc"))
    assert (found.kind, found.content) == ("file", b"abc")


def test_a_v7_name_with_a_slash_at_its_end_is_a_directory() -> None:
    assert read_alone(header(b"d/", kind=b"\0", magic=V7_MAGIC, mode=0o755)).kind == "directory"


@pytest.mark.parametrize("kind", [b"V", b"M", b"D", b"N", b"A", b"8", b"9", b"Z", b"\xff", b" ", b"X"])
def test_an_unknown_type_is_an_error_that_names_the_entry(kind: bytes) -> None:
    error = error_of(layers.layer(file(b"before"), header(b"strange", kind=kind)))
    assert isinstance(error, Malformed)
    assert "strange" in str(error)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (b"0000644\0", 0o644),
        (b"000644 \0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0\0\0\0\0", 0o644),
        (b"00000644", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"0\0\0\0\0\0\0\0", 0),
        (b"\x80\0\0\0\0\0\x01\xa4", 0o644),
    ],
)
def test_numbers_are_read_in_every_way_they_were_ever_written(text: bytes, number: int) -> None:
    assert read_alone(header(b"f", mode=text)).mode == number
    assert read_alone(header(b"f", uid=text)).uid == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"00000000017\0", 15),
        (b"777777777777", 8**12 - 1),
        (layers.base256(8**11, 12), 8**11),
        (layers.base256(-1, 12), -1),
        (layers.base256(-(2**40), 12), -(2**40)),
        (b"\xff" * 12, -1),
    ],
)
def test_times_may_be_large_or_negative(text: bytes, seconds: int) -> None:
    assert read_alone(header(b"f", mtime=text, magic=GNU_MAGIC)).mtime_ns == seconds * 10**9


@pytest.mark.parametrize("text", [b"64x\0", b"9999999\0", b"-1\0", b"0x1ff\0", b"1 2\0"])
@pytest.mark.parametrize("field", ["size", "mode", "uid", "gid", "mtime"])
def test_a_number_that_is_none_is_an_error(field: str, text: bytes) -> None:
    fields: dict[str, bytes] = {field: text}
    error_of(layers.layer(header(b"f", **fields)))  # type: ignore[arg-type]


def test_a_time_of_more_than_64_bits_is_an_error() -> None:
    error_of(layers.layer(header(b"f", mtime=b"\x81" + b"\xff" * 11, magic=GNU_MAGIC)))


@pytest.mark.parametrize(
    "size", [layers.base256(-1, 12), b"\xff" * 12, layers.base256(2**63, 12), layers.base256(2**80, 12)]
)
def test_a_size_that_is_negative_or_beyond_64_bits_is_an_error(size: bytes) -> None:
    error_of(layers.layer(header(b"f", size=size, magic=GNU_MAGIC)))


@pytest.mark.parametrize(
    "text", [b"-1", b"99999999999999999999", b"9" * 1000, b"1e3", b" 1", b"0x10", b"1.5", b"\xd9\xa3", b"1_0", b"+1"]
)
def test_a_pax_size_that_is_no_size_is_an_error(text: bytes) -> None:
    error_of(layers.layer(pax_header([(b"size", text)]), header(b"f")))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"uid", b"-x"),
        (b"gid", b"1.5"),
        (b"mtime", b"noon"),
        (b"mtime", b"1.2.3"),
        (b"mtime", b"."),
        (b"uid", b"9" * 30),
    ],
)
def test_a_pax_number_that_is_none_is_an_error(key: bytes, text: bytes) -> None:
    error_of(layers.layer(pax_header([(key, text)]), header(b"f")))


def test_a_checksum_of_signed_bytes_is_a_checksum_too() -> None:
    assert read_alone(header(b"\xff\xfe\xfd", signed_checksum=True)).kind == "file"


@pytest.mark.parametrize("style", [b"%06o\0 ", b"%07o\0", b"%6o\0 ", b"%6o \0", b"%06o  ", b"%08o"])
def test_a_checksum_is_read_in_every_way_it_was_ever_written(style: bytes) -> None:
    total = sum(header(b"f")[:148] + b" " * 8 + header(b"f")[156:])
    assert read_alone(header(b"f", checksum=style % total)).kind == "file"


def test_a_wrong_checksum_is_an_error() -> None:
    for wrong in (b"000000\0 ", b"777777\0 ", b"        ", b"\0" * 8, b"garbage!"):
        assert isinstance(error_of(layers.layer(file(b"a"), header(b"f", checksum=wrong))), Malformed)


def test_the_prefix_of_a_ustar_name_counts_and_that_of_old_gnu_does_not() -> None:
    assert set(listing_of(layers.layer(header(b"n", prefix=b"p/q")))) == {b"p", b"p/q", b"p/q/n"}
    assert set(listing_of(layers.layer(header(b"n" * 100, prefix=b"p" * 155)))) == {
        b"p" * 155,
        b"p" * 155 + b"/" + b"n" * 100,
    }
    assert set(listing_of(layers.layer(header(b"n", prefix=b"\0" * 41 + b"times", magic=GNU_MAGIC)))) == {b"n"}
    assert set(listing_of(layers.layer(header(b"n", magic=V7_MAGIC)))) == {b"n"}


def test_a_name_ends_at_its_nul_or_at_the_end_of_its_field() -> None:
    assert set(listing_of(layers.layer(header(b"name\0junk")))) == {b"name"}
    assert set(listing_of(layers.layer(header(b"n" * 100)))) == {b"n" * 100}


def test_an_entry_without_a_name_is_an_error() -> None:
    error_of(layers.layer(header(b"")))


@pytest.mark.parametrize(
    ("kind", "link"), [(b"5", b""), (b"2", b"t"), (b"1", b"t"), (b"3", b""), (b"4", b""), (b"6", b"")]
)
def test_a_size_on_a_header_that_carries_no_payload_is_of_no_account(kind: bytes, link: bytes) -> None:
    archive = layers.layer(file(b"t", b"1"), header(b"x", kind=kind, link=link, size=4096), file(b"after", b"2"))
    found = listing_of(archive)
    assert set(found) == {b"t", b"x", b"after"}
    assert found[b"after"].content == b"2"
    paxed = layers.layer(
        file(b"t", b"1"), pax_header([(b"size", b"4096")]) + header(b"x", kind=kind, link=link), file(b"after", b"2")
    )
    assert listing_of(paxed) == found


# --- Extension headers ------------------------------------------------------------------------------------------------


def test_local_records_say_more_than_the_header() -> None:
    records = [
        (b"path", b"d/name"),
        (b"uid", b"3000000"),
        (b"gid", b"4000000"),
        (b"mtime", b"1.5"),
        (b"size", b"3"),
        (b"comment", b"nobody reads this"),
        (b"atime", b"7"),
        (b"VENDOR.key", b"value"),
    ]
    found = listing_of(
        layers.layer(pax_header(records), header(b"other", size=0) + layers.padded(b"abc"), file(b"after"))
    )
    assert set(found) == {b"d", b"d/name", b"after"}
    assert found[b"d/name"] == model.Listed(
        "file", 0o644, 3_000_000, 4_000_000, 1_500_000_000, b"abc", names=(b"d/name",)
    )
    assert found[b"after"].uid == 0


def test_a_link_may_have_its_target_in_a_record() -> None:
    found = listing_of(
        layers.layer(
            file(b"t" * 120, b"1"),
            pax_header([(b"linkpath", b"t" * 120)]) + header(b"l", kind=b"1", link=b"wrong"),
            pax_header([(b"linkpath", b"../\xff")]) + header(b"s", kind=b"2", link=b"wrong"),
        )
    )
    assert found[b"l"].names == (b"l", b"t" * 120)
    assert found[b"s"].link == b"../\xff"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"0", 0),
        (b"1.5", 1_500_000_000),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -500_000_000),
        (b"1.000000001", 1_000_000_001),
        (b"1e-09", 1),  # as Python's tarfile writes it
        (b"1600000000.123456789123", 1_600_000_000_123_456_789),
        (b"1600000000.5000000", 1_600_000_000_500_000_000),
        (b"68719476736", 68_719_476_736 * 10**9),
    ],
)
def test_times_in_records_are_read_to_the_nanosecond(text: bytes, nanoseconds: int) -> None:
    found = read_alone(pax_header([(b"mtime", text)]), header(b"f", mtime=5))
    assert found.mtime_ns == nanoseconds


def test_global_records_hold_for_what_follows_and_local_ones_come_before_them() -> None:
    found = listing_of(
        layers.layer(
            file(b"before"),
            pax_header([(b"comment", b"0123abc"), (b"uid", b"7"), (b"mtime", b"1.5")], kind=b"g"),
            header(b"a"),
            pax_header([(b"uid", b"8")]) + header(b"b"),
            pax_header([(b"uid", b"9")], kind=b"g"),
            header(b"c"),
        )
    )
    assert {path: (listed.uid, listed.mtime_ns) for path, listed in found.items()} == {
        b"before": (0, 0),
        b"a": (7, 1_500_000_000),
        b"b": (8, 1_500_000_000),
        b"c": (9, 1_500_000_000),
    }


def test_a_global_header_as_git_archive_writes_it_changes_nothing() -> None:
    comment = pax_header([(b"comment", b"0" * 40)], kind=b"g")
    assert listing_of(layers.layer(comment, file(b"f", b"1"))) == listing_of(layers.layer(file(b"f", b"1")))
    assert listing_of(layers.layer(file(b"f", b"1"), comment)) == listing_of(layers.layer(file(b"f", b"1")))
    assert listing_of(layers.layer(comment)) == {}


def test_of_repeated_extension_headers_and_records_the_last_word_counts() -> None:
    once_more = pax_header([(b"path", b"wrong")]) + pax_header([(b"path", b"right")]) + header(b"x")
    assert set(listing_of(layers.layer(once_more))) == {b"right"}
    assert set(listing_of(layers.layer(pax_header([(b"path", b"wrong"), (b"path", b"right")]), header(b"x")))) == {
        b"right"
    }
    long_names = layers.gnu_long(b"L", b"wrong" * 30) + layers.gnu_long(b"L", b"right" * 30)
    assert set(listing_of(layers.layer(long_names + header(b"x", magic=GNU_MAGIC)))) == {b"right" * 30}


def test_an_extension_header_without_a_record_says_nothing() -> None:
    for kind in (b"x", b"g"):
        assert set(listing_of(layers.layer(pax_header([], kind=kind), file(b"f")))) == {b"f"}


def test_gnu_long_names_and_links_may_come_in_either_order_and_without_a_nul() -> None:
    name, link = layers.gnu_long(b"L", b"n" * 150), layers.gnu_long(b"K", b"t" * 150)
    for extensions in (name + link, link + name):
        found = listing_of(layers.layer(extensions + header(b"n", kind=b"2", link=b"t", magic=GNU_MAGIC)))
        assert found[b"n" * 150].link == b"t" * 150
    bare = header(b"././@LongLink", kind=b"L", size=150, magic=GNU_MAGIC) + layers.padded(b"n" * 150)
    assert set(listing_of(layers.layer(bare + header(b"n", magic=GNU_MAGIC)))) == {b"n" * 150}


def test_a_name_that_bsdtar_marked_as_binary_is_taken_as_it_is() -> None:
    records = [(b"hdrcharset", b"BINARY"), (b"path", b"\xff\xfe"), (b"linkpath", b"\x80")]
    assert (
        listing_of(layers.layer(pax_header(records), header(b"x", kind=b"2", link=b"y")))[b"\xff\xfe"].link == b"\x80"
    )


def test_an_xattr_may_be_said_twice_and_the_last_word_counts() -> None:
    records = [(b"SCHILY.xattr.user.x", b"1"), (b"SCHILY.xattr.user.y", b"2"), (b"SCHILY.xattr.user.x", b"3")]
    assert read_alone(pax_header(records), header(b"f")).xattrs == ((b"user.x", b"3"), (b"user.y", b"2"))


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"30 path=short\n",
        b"5 path=too long\n",
        b"0 path=x\n",
        b"-9 path=x\n",
        b"10 path=abc",
        b"11 path=abcd",
        b"8 path\n\n",
        b"7 =abc\n",
        b" 9 path=x\n",
        b"x9 path=x\n",
        b"99999999999999999999 path=x\n",
        b"9path=xy\n",
        b"+11 path=x\n",
        b"1_2 path=xy\n",
        b"11 path=a\0\n",
        b"14 linkpath=\0\n",
    ],
)
def test_a_record_that_breaks_the_rules_is_an_error(content: bytes) -> None:
    error_of(layers.layer(pax_block(content), header(b"f", kind=b"2", link=b"x")))


@pytest.mark.parametrize(("key", "kind"), [(b"path", b"0"), (b"linkpath", b"2"), (b"linkpath", b"1")])
def test_a_nul_in_a_name_in_a_record_is_an_error(key: bytes, kind: bytes) -> None:
    for value in (b"a\0b", b"\0", b"a\0"):
        error_of(layers.layer(file(b"a"), pax_header([(key, value)]), header(b"f", kind=kind, link=b"a")))


@pytest.mark.parametrize("kind", [b"x", b"L", b"K"])
def test_an_extension_header_without_an_entry_is_an_error(kind: bytes) -> None:
    extension = pax_header([(b"path", b"x")]) if kind == b"x" else layers.gnu_long(kind, b"x" * 120)
    error_of(layers.layer(file(b"a"), extension))
    error_of(layers.layer(file(b"a"), extension, end=b""))
    error_of(layers.layer(file(b"a"), extension * 3, end=bytes(BLOCK)))


# --- The end of an archive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        b"",
        bytes(512),
        bytes(1024),
        bytes(1536),
        bytes(10_240),
        bytes(9728),
        bytes(700),
        END + b"garbage" * 100,
        END + END,
    ],
    ids=[
        "none",
        "one block",
        "two blocks",
        "three",
        "a record",
        "to a record",
        "odd",
        "garbage",
        "twice",
    ],
)
def test_an_archive_may_end_in_many_ways(end: bytes) -> None:
    archive = layers.layer(file(b"a", b"1"), end=end)
    assert listing_of(archive) == listing_of(layers.layer(file(b"a", b"1")))
    assert index_of(archive).size == len(archive)
    assert index_of(archive).diff_id == Digest.of(archive)


def test_an_archive_of_nothing_is_empty() -> None:
    for archive in (b"", END, bytes(512), bytes(10_240)):
        assert listing_of(archive) == {}
        assert len(index_of(archive)) == 0


def test_the_last_payload_may_lack_its_padding() -> None:
    """Some old writers stopped after the last byte."""
    archive = layers.layer(file(b"a", b"1" * 700))[: 512 + 700]
    try:
        found = listing_of(archive)
    except Damaged:
        return
    assert found[b"a"].content == b"1" * 700


CUT = layers.layer(
    file(b"a", b"1" * 600, mtime_ns=1_500_000_000, xattrs={b"user.x": b"1"}),
    directory(b"d/"),
    file(b"d/" + b"n" * 120, b"2"),
    hardlink(b"l", b"a"),
    layers.pax_sparse_10(b"sparse", 5000, [(1000, b"s" * 600)]),
    layers.old_gnu_sparse(b"old", 50_000, [(at * 2048, b"%02d" % at * (256 if at == 0 else 0)) for at in range(10)]),
)


def test_an_archive_cut_anywhere_is_an_error_or_ends_between_two_entries() -> None:
    whole = model.listing_of_tar(merged([CUT]))
    boundaries = {0: 0}
    for cut in range(len(CUT)):
        if cut % BLOCK not in (0, 1, 2, 100, 257, 510, 511) and cut % 17:
            continue
        try:
            index = index_of(CUT[:cut])
        except Problem:
            continue
        found = model.listing_of_tar(merged([CUT[:cut]]))
        for path, listed in found.items():
            assert replace(whole[path], names=()) == replace(listed, names=()), f"{path!r} cut at {cut}"
        boundaries[len(index)] = cut
    assert max(boundaries) == len(whole)
    assert len(boundaries) == len(whole) + 1


@pytest.mark.parametrize("compress", [layers.gzipped, layers.zstd_frame], ids=["gzip", "zstd"])
def test_a_compressed_archive_cut_anywhere_is_an_error(compress: Callable[[bytes], bytes]) -> None:
    blob = compress(CUT)
    for cut in range(1, len(blob)):
        with pytest.raises(Problem):
            index_of(decompressed(BytesIO(blob[:cut])))


# --- Limits -----------------------------------------------------------------------------------------------------------


class Endless:
    """An archive that goes on for ever, and counts how much of it was taken."""

    def __init__(self, start: bytes, rest: bytes) -> None:
        self.start, self.rest, self.taken = start, rest * max(1, 65_536 // len(rest)), 0

    def __iter__(self) -> Iterator[bytes]:
        yield self.start
        while True:
            self.taken += len(self.rest)
            assert self.taken < 64 << 20, "read on and on"
            yield self.rest


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 31, 1 << 40, 1 << 62])
def test_an_extension_header_of_gigabytes_is_refused_unread(kind: bytes, size: int) -> None:
    endless = Endless(layers.written(file(b"a")) + header(b"ext", kind=kind, size=size, magic=GNU_MAGIC), b"x" * BLOCK)
    error_of(iter(endless))
    assert endless.taken <= 16 << 20


def test_extension_headers_up_to_the_limit_are_read() -> None:
    big = {b"user.x": b"v" * (64 << 10)}
    archive = layers.layer(file(b"a", xattrs=big))
    assert dict(listing_of(archive)[b"a"].xattrs) == big
    assert "VERBS_MAX_EXTENSION" in str(error_of(archive, limits=LayerLimits(max_extension=1000)))
    assert index_of(archive, limits=LayerLimits(max_extension=70_000)).size == len(archive)


def test_a_chain_of_extension_headers_without_end_is_refused() -> None:
    for extension in (
        pax_header([(b"comment", b"x")]),
        pax_header([(b"SCHILY.xattr.user.x", b"x" * 1000)]),
        layers.gnu_long(b"L", b"n" * 200),
        pax_header([(b"path", b"p")]) + layers.gnu_long(b"K", b"n" * 200),
    ):
        error_of(iter(Endless(b"", extension)))


def test_global_headers_without_end_are_refused() -> None:
    error_of(iter(Endless(b"", pax_header([(b"comment", b"x")], kind=b"g"))))


def test_sparse_extension_blocks_without_end_are_refused() -> None:
    whole = layers.old_gnu_sparse(b"s", 1 << 30, [(at * 1024, b"x" * 512) for at in range(60)])
    start, block = whole[:512], bytearray(whole[512:1024])
    block[504] = 1
    error_of(iter(Endless(start, bytes(block))))
    numbers = header(b"s", size=1 << 40)
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"1"),
        (b"GNU.sparse.name", b"s"),
    ]
    error_of(iter(Endless(pax_header(records) + numbers + (b"%d\n" % 10**12).ljust(512, b"0"), b"0\n0\n" * 128)))


def test_what_sparse_maps_may_take_is_counted_by_entry() -> None:
    regions = [(at * 1024, b"x") for at in range(4 + 21 * 3)]
    archive = layers.layer(*(layers.old_gnu_sparse(b"s%d" % at, 1 << 20, regions) for at in range(5)))
    limits = LayerLimits(max_extension=3 * 512)
    assert len(index_of(archive, limits=limits)) == 5
    assert "s0" in str(error_of(archive, limits=LayerLimits(max_extension=3 * 512 - 1)))


def test_sparse_files_of_more_than_the_limit_are_refused() -> None:
    """A hole costs nothing to write: 512 bytes of archive may ask for exabytes of image."""
    for build in (layers.old_gnu_sparse, layers.pax_sparse_00, layers.pax_sparse_01, layers.pax_sparse_10):
        archive = layers.layer(build(b"s", 5_000_000, [(0, b"x")]))
        assert isinstance(error_of(archive, limits=LayerLimits(max_size=1_000_000)), TooLarge)
    for build in (layers.pax_sparse_00, layers.pax_sparse_01, layers.pax_sparse_10):
        error_of(layers.layer(build(b"s", 1 << 62, [(0, b"x")])))


BACKWARDS = [(2000, b"x" * 600), (1000, b"y" * 600)]
OVERLAPPING = [(1000, b"x" * 600), (1200, b"y" * 600)]


def sparse_01(pairs: bytes, size: int, data: bytes = b"") -> bytes:
    """Return a sparse file whose map, of one region, is as given."""
    records = [(b"GNU.sparse.map", pairs), (b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"1")]
    return pax_header(records) + header(b"holes", size=len(data)) + layers.padded(data)


def sparse_10(map_: bytes, *, major: bytes = b"1") -> bytes:
    """Return a sparse file of nine bytes whose map is as given."""
    records = [(b"GNU.sparse.major", major), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")]
    return pax_header(records) + header(b"holes", size=512) + layers.padded(map_)


NONSENSE = {
    "1.0, data beyond its size": layers.pax_sparse_10(b"holes", 100, [(0, b"x" * 600)]),
    "1.0, backwards": layers.pax_sparse_10(b"holes", 5000, BACKWARDS),
    "1.0, overlapping": layers.pax_sparse_10(b"holes", 5000, OVERLAPPING),
    "1.0, no number": sparse_10(b"x\n"),
    "1.0, too few numbers": sparse_10(b"2\n0\n1\n"),
    "1.0, negative": sparse_10(b"1\n-1\n1\n"),
    "2.0": sparse_10(b"0\n", major=b"2"),
    "0.1, data beyond its size": layers.pax_sparse_01(b"holes", 100, [(0, b"x" * 600)]),
    "0.1, overlapping": layers.pax_sparse_01(b"holes", 5000, OVERLAPPING),
    "0.1, no number": sparse_01(b"0,x", 9),
    "0.1, half a pair": sparse_01(b"0", 9),
    "0.1, less data than the map says": sparse_01(b"0,600", 600, b"x" * 100) + layers.written(file(b"next", b"1")),
    "0.0, backwards": layers.pax_sparse_00(b"holes", 5000, BACKWARDS),
    "old, data beyond its size": layers.old_gnu_sparse(b"holes", 100, [(0, b"x" * 600)]),
    "old, backwards": layers.old_gnu_sparse(b"holes", 5000, BACKWARDS),
}


@pytest.mark.parametrize("archive", NONSENSE.values(), ids=NONSENSE)
def test_a_sparse_map_that_makes_no_sense_is_an_error(archive: bytes) -> None:
    assert "holes" in str(error_of(archive + END))


def test_a_layer_of_more_entries_than_the_limit_is_refused_and_the_limit_named() -> None:
    archive = layers.layer(*(file(b"f%d" % at) for at in range(11)))
    error = error_of(archive, limits=LayerLimits(max_entries=10))
    assert isinstance(error, TooLarge)
    assert "VERBS_MAX_ENTRIES" in str(error)
    assert len(index_of(archive, limits=LayerLimits(max_entries=11))) == 11
    error_of(iter(Endless(b"", layers.written(file(b"f")))), limits=LayerLimits(max_entries=1000))


def test_a_layer_of_more_bytes_than_the_limit_is_refused_and_the_limit_named() -> None:
    archive = layers.layer(file(b"f", bytes(5000)))
    error = error_of(archive, limits=LayerLimits(max_size=4000))
    assert isinstance(error, TooLarge)
    assert "VERBS_MAX_SIZE" in str(error)
    for size in (100, 512, 1000, 100_000):
        chunks = list(layers.in_chunks(archive, size))
        assert index_of(iter(chunks), limits=LayerLimits(max_size=len(archive))).size == len(archive)
        error_of(iter(chunks), limits=LayerLimits(max_size=len(archive) - 1))


@pytest.mark.parametrize("start", [header(b"f", size=1 << 39), END], ids=["a payload", "after the end"])
def test_a_gzip_bomb_is_inflated_no_further_than_the_limit(start: bytes) -> None:
    blob = layers.gzipped(start + bytes(200_000_000))
    inflated = 0

    def counted() -> Iterator[bytes]:
        nonlocal inflated
        for chunk in decompressed(BytesIO(blob)):
            inflated += len(chunk)
            yield chunk

    assert isinstance(error_of(counted(), limits=LayerLimits(max_size=1 << 20)), TooLarge)
    assert inflated < 16 << 20


def test_a_payload_that_ends_early_is_an_error() -> None:
    assert isinstance(error_of(header(b"f", size=10_000) + bytes(9000)), Damaged)
    assert isinstance(error_of(header(b"f", size=1 << 39) + bytes(9000)), Damaged)


# --- Fuzz -------------------------------------------------------------------------------------------------------------

FUZZED = [
    CUT,
    layers.layer(
        pax_header([(b"comment", b"c")], kind=b"g"),
        symlink(b"s", b"d"),
        directory(b"d"),
        file(b"s/f", b"1"),
        layers.whiteout(b"d/f"),
        layers.opaque(b"d"),
        layers.character_device(b"c", 1, 3),
        file(b"n" * 200, b"1" * 600),
    ),
    layers.layer(
        symlink(b"l" * 150, b"t" * 150),
        file(b"n" * 150, b"x", uid=2**31),
        hardlink(b"h" * 120, b"n" * 150),
        dialect="gnu",
    ),
    layers.layer(
        layers.pax_sparse_00(b"a", 5000, [(1000, b"s" * 600)]),
        layers.pax_sparse_01(b"b", 5000, [(1000, b"s" * 600)]),
        layers.old_gnu_sparse(b"c", 50_000, [(at * 1024, b"%02d" % at * 256) for at in range(30)]),
    ),
]

SMALL_LIMITS = LayerLimits(max_entries=1000, max_size=1 << 22)


def stream_alone(archive: bytes) -> None:
    """Index and merge an archive within small limits; raises Problem or does what it promises."""
    index = read_layer_index([archive], layer="sha256:of-a-test", limits=SMALL_LIMITS)
    restored_from(dumped(index), layer="sha256:of-a-test")
    source = LayerSource(Digest.of(archive), len(archive), index, lambda: BytesIO(archive))
    merger = StreamLayerMerger([source], path_prefix=b"rootfs/", limits=SMALL_LIMITS)
    assert sum(len(chunk) for chunk in merger.get_generator()) == merger.size


def with_right_checksums(archive: bytearray) -> None:
    """Make each block that looks like a header one whose checksum is right, so that mutations get behind it."""
    for at in range(0, len(archive) - BLOCK + 1, BLOCK):
        block = archive[at : at + BLOCK]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            archive[at + 148 : at + 156] = b"%06o\0 " % total


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_archive_raises_nothing_but_problems_and_never_hangs(seed: int) -> None:
    chance = random.Random(seed)
    accepted = refused = 0
    for _ in range(1500):
        archive = bytearray(chance.choice(FUZZED))
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(archive))
            match chance.randrange(6):
                case 0:
                    archive[at] = chance.randrange(256)
                case 1:
                    archive[at] ^= 1 << chance.randrange(8)
                case 2:
                    block = at // BLOCK * BLOCK
                    field = chance.choice((0, 100, 108, 116, 124, 136, 148, 156, 157, 257, 329, 345, 386, 482, 483))
                    archive[min(block + field, len(archive) - 1)] = chance.choice(b"\0\x80\xff 019-/.xgLKS57")
                case 3:
                    end = min(len(archive), at + chance.randrange(1, 600))
                    del archive[at:end]
                case 4:
                    block = at // BLOCK * BLOCK
                    archive[block:block] = chance.choice(FUZZED)[: BLOCK * chance.randrange(1, 4)]
                case _:
                    digits = chance.choice(
                        (b"9" * 20, b"-1", b"0", b"18446744073709551616", b"\n", b"=", b"4294967296 ")
                    )
                    archive[at : at + len(digits)] = digits
        if chance.random() < 0.8:
            with_right_checksums(archive)
        try:
            stream_alone(bytes(archive))
            accepted += 1
        except Problem:
            refused += 1
    assert accepted > 50
    assert refused > 50


def test_noise_raises_nothing_but_problems() -> None:
    chance = random.Random(0)
    for _ in range(300):
        noise = b"n" + chance.randbytes(chance.choice((0, 99, 511, 512, 1023, 4999)))
        with pytest.raises(Problem):
            stream_alone(noise)
