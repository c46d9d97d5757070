"""Reading what any gzip or zstd wrote, refusing what is cut or changed, and writing the same bytes every time."""

import gzip
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest
import zstandard

from test import clients, layers
from util.compression import Compression, compressed, compression_revision, decompressed
from util.problem import Damaged, Problem

NOISE = random.Random(1).randbytes(5000) + b"text " * 3000
CONTENTS = {
    "empty": b"",
    "a byte": b"x",
    "text": b"some text\n" * 1000,
    "noise": NOISE,
    "zeros": bytes(300_000),
}


class Dripping(BytesIO):
    """A stream that gives at most `most` bytes a read."""

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.most if size is None or size < 0 else min(size, self.most))


def unwrapped(blob: bytes, most: int = 1 << 20) -> bytes:
    return b"".join(decompressed(Dripping(blob, most)))


GZIPS: dict[str, Callable[[bytes], bytes]] = {
    "python": lambda content: gzip.compress(content, mtime=0),
    "python, with a time": lambda content: gzip.compress(content, mtime=1_600_000_000),
    "stored": lambda content: gzip.compress(content, compresslevel=0, mtime=0),
    "bare header": layers.gzip_member,
    "FTEXT": lambda content: layers.gzip_member(content, text=True),
    "FEXTRA": lambda content: layers.gzip_member(content, extra=b"SG\2\0ab" * 50),
    "FEXTRA, empty": lambda content: layers.gzip_member(content, extra=b""),
    "FEXTRA, all that fits": lambda content: layers.gzip_member(content, extra=bytes(65535)),
    "FNAME": lambda content: layers.gzip_member(content, name=b"layer.tar"),
    "FNAME, empty": lambda content: layers.gzip_member(content, name=b""),
    "FNAME, long": lambda content: layers.gzip_member(content, name=b"n" * 70_000),
    "FCOMMENT": lambda content: layers.gzip_member(content, comment=b"\xe9 comment"),
    "FHCRC": lambda content: layers.gzip_member(content, header_crc=True),
    "all fields": lambda content: layers.gzip_member(
        content, extra=b"x" * 300, name=b"n", comment=b"c", header_crc=True, text=True
    ),
    "members": lambda content: layers.gzip_members(content, 4000) or layers.gzip_member(b""),
    "members with all fields": lambda content: b"".join(
        layers.gzip_member(part, extra=b"x" * 9, name=b"n", comment=b"c", header_crc=True)
        for part in (content[:100], b"", content[100:], b"")
    ),
    "gzip": lambda content: clients.run("gzip", "-c", stdin=content),
    "gzip, best": lambda content: clients.run("gzip", "-9c", stdin=content),
    "gzip, one after the other": lambda content: (
        clients.run("gzip", "-c", stdin=content[:1000]) + clients.run("gzip", "-1c", stdin=content[1000:])
    ),
}

ZSTDS: dict[str, Callable[[bytes], bytes]] = {
    "python": layers.zstd_frame,
    "no checksum, no size": lambda content: layers.zstd_frame(content, checksum=False, with_size=False),
    "frames": lambda content: layers.zstd_frames(content, 4000) or layers.zstd_frame(b""),
    "skippable first": lambda content: layers.zstd_skippable(b"toc" * 99) + layers.zstd_frame(content),
    "skippable last": lambda content: layers.zstd_frame(content) + layers.zstd_skippable(b"toc" * 99),
    "skippable between, each magic": lambda content: b"".join(
        layers.zstd_skippable(b"x" * magic, magic=magic) + layers.zstd_frame(content[magic * 100 : end])
        for magic, end in [(at, at * 100 + 100) for at in range(15)] + [(15, len(content))]
    ),
    "skippable, empty": lambda content: layers.zstd_skippable(b"") + layers.zstd_frame(content),
    "skippable, large": lambda content: layers.zstd_skippable(bytes(3_000_000)) + layers.zstd_frame(content),
    "zstd": lambda content: clients.run("zstd", "-c", "-q", stdin=content),
    "zstd, long": lambda content: clients.run("zstd", "-c", "-q", "--long=27", "-12", stdin=content),
    "zstd, no checksum": lambda content: clients.run("zstd", "-c", "-q", "--no-check", stdin=content),
}

WRITERS = [pytest.param(write, id=f"gzip: {name}") for name, write in GZIPS.items()] + [
    pytest.param(write, id=f"zstd: {name}") for name, write in ZSTDS.items()
]
EACH_CONTENT = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)


@EACH_CONTENT
@pytest.mark.parametrize("write", WRITERS)
def test_what_any_program_wrote_is_read_whole(write: Callable[[bytes], bytes], content: bytes) -> None:
    blob = write(content)
    assert unwrapped(blob) == content
    assert unwrapped(blob, 4099) == content


@pytest.mark.parametrize("write", WRITERS)
def test_what_comes_byte_by_byte_is_read_the_same(write: Callable[[bytes], bytes]) -> None:
    content = CONTENTS["text"][:3000]
    blob = write(content)
    assert unwrapped(blob, 1 if len(blob) < 10_000 else 997) == content


@EACH_CONTENT
def test_what_is_not_compressed_passes_as_it_is(content: bytes) -> None:
    assert unwrapped(content) == content
    assert unwrapped(content, 7 if len(content) < 10_000 else 997) == content


SMALL: dict[str, bytes] = {
    "gzip": layers.gzip_member(b"some text, some text", extra=b"x", name=b"n", comment=b"c", header_crc=True),
    "gzip, bare": layers.gzipped(b"some text, some text"),
    "gzip, stored": gzip.compress(b"some text", compresslevel=0, mtime=0),
    "zstd": layers.zstd_frame(b"some text, some text"),
    "zstd, no checksum": layers.zstd_frame(b"some text, some text", checksum=False, with_size=False),
    "zstd, skippable first": layers.zstd_skippable(b"toc") + layers.zstd_frame(b"some text"),
}


@pytest.mark.parametrize("blob", SMALL.values(), ids=SMALL)
def test_a_stream_cut_anywhere_is_an_error(blob: bytes) -> None:
    magic = 2 if blob[:2] == b"\x1f\x8b" else 4
    for cut in range(magic, len(blob)):
        if cut == 11 and blob.startswith(b"\x50\x2a\x4d\x18"):
            continue  # whole frames, and the digest alone can tell that there were more
        for most in (1, 1 << 20):
            with pytest.raises(Damaged):
                unwrapped(blob[:cut], most)


def test_a_second_member_or_frame_cut_anywhere_is_an_error() -> None:
    for first, second in (
        (SMALL["gzip, bare"],) * 2,
        (SMALL["zstd"],) * 2,
        (SMALL["zstd"], layers.zstd_skippable(b"toc")),
    ):
        for cut in range(1, len(second)):
            with pytest.raises(Damaged):
                unwrapped(first + second[:cut])


@pytest.mark.parametrize(
    "blob",
    [
        layers.gzip_member(NOISE, crc=1),
        layers.gzip_member(NOISE, size=len(NOISE) - 1),
        layers.gzip_member(NOISE, size=0),
        layers.gzip_member(b"one") + layers.gzip_member(b"two", crc=0),
        layers.gzip_member(b"one", crc=0) + layers.gzip_member(b"two"),
    ],
    ids=["crc", "size", "no size", "crc of the last member", "crc of the first member"],
)
def test_a_wrong_gzip_trailer_is_an_error(blob: bytes) -> None:
    for most in (1, 1 << 20):
        with pytest.raises(Damaged):
            unwrapped(blob, most)


def test_a_wrong_zstd_checksum_is_an_error() -> None:
    blob = layers.zstd_frame(NOISE)
    for frames in (blob[:-1] + bytes([blob[-1] ^ 1]), blob + blob[:-4] + b"\0\0\0\0"):
        with pytest.raises(Damaged):
            unwrapped(frames)


@pytest.mark.parametrize("garbage", [b"garbage", b"\x1f", b"\x1f\x8b", b"x" * 10_000, b"\x1f\x8b\x08"])
@pytest.mark.parametrize("blob", [layers.gzipped(NOISE), layers.zstd_frame(NOISE)], ids=["gzip", "zstd"])
def test_bytes_after_the_stream_that_are_no_further_member_are_an_error(blob: bytes, garbage: bytes) -> None:
    for most in (1, 1 << 20):
        with pytest.raises(Damaged):
            unwrapped(blob + garbage, most)


@pytest.mark.parametrize(
    "head",
    [b"\x1f\x8b\x07\0", b"\x1f\x8b\x08\x20", b"\x1f\x8b\x08\xff", b"\x28\xb5\x2f\xfd\xff\xff\xff\xff"],
    ids=["method", "reserved flag", "all flags", "zstd"],
)
def test_a_header_that_no_program_writes_is_an_error(head: bytes) -> None:
    with pytest.raises(Damaged):
        unwrapped(head + bytes(100))


@pytest.mark.parametrize("blob", [b"\xfd7zXZ\0" + bytes(100), b"BZh91AY&SY" + bytes(100)], ids=["xz", "bzip2"])
def test_a_compression_that_images_may_not_have_is_named(blob: bytes) -> None:
    with pytest.raises(Problem, match=r"xz|bzip2"):
        unwrapped(blob)


def test_an_error_calls_the_stream_by_its_name() -> None:
    with pytest.raises(Damaged, match="layer sha256:abc"):
        b"".join(decompressed(BytesIO(layers.gzipped(NOISE)[:-1]), what="layer sha256:abc"))


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: gzip.compress(bytes(200_000_000), mtime=0),
        lambda: zstandard.ZstdCompressor().compress(bytes(200_000_000)),
    ],
    ids=["gzip", "zstd"],
)
def test_a_bomb_is_inflated_in_pieces_and_no_further_than_asked(bomb: Callable[[], bytes]) -> None:
    blob = bomb()
    tracemalloc.start()
    pieces = decompressed(BytesIO(blob))
    largest = max(len(next(pieces)) for _ in range(20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest <= 4 << 20
    assert peak < 32 << 20


def test_a_zstd_frame_that_wants_gigabytes_of_window_is_an_error_or_read_in_little_memory() -> None:
    frame = b"\x28\xb5\x2f\xfd" + b"\x04" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00" + struct.pack("<I", 0x51D8E999)
    with pytest.raises(Damaged):
        unwrapped(frame)


def test_changed_bytes_anywhere_give_an_error_or_the_same_content() -> None:
    """A flipped bit may stand where nothing depends on it (a time, a name); it never changes the content."""
    content = b"some text, some text and some more text"
    for blob in (layers.gzip_member(content, name=b"n", extra=b"xx"), layers.zstd_frame(content)):
        for at in range(4, len(blob)):
            for bit in (1, 16, 128):
                changed = blob[:at] + bytes([blob[at] ^ bit]) + blob[at + 1 :]
                try:
                    found = unwrapped(changed)
                except Damaged:
                    continue
                assert found == content


# --- Writing ----------------------------------------------------------------------------------------------------------

PACKED = [Compression.GZIP, Compression.ZSTD]


@EACH_CONTENT
@pytest.mark.parametrize("compression", list(Compression))
def test_what_is_written_reads_back(compression: Compression, content: bytes) -> None:
    assert unwrapped(b"".join(compressed([content], compression))) == content


@EACH_CONTENT
@pytest.mark.parametrize("compression", list(Compression))
def test_the_same_content_gives_the_same_bytes_in_every_chunking(compression: Compression, content: bytes) -> None:
    expected = b"".join(compressed([content], compression))
    for size in (1, 511, 4096, 100_000):
        if len(content) / size < 50_000:
            assert b"".join(compressed(layers.in_chunks(content, size), compression)) == expected
    with_empty = [part for chunk in layers.in_chunks(content, 5000) for part in (b"", chunk)] + [b""]
    assert b"".join(compressed(with_empty, compression)) == expected


def test_large_content_gives_the_same_bytes_in_every_chunking() -> None:
    content = NOISE * 400 + bytes(3_000_000) + NOISE * 50
    for compression in PACKED:
        expected = b"".join(compressed([content], compression))
        assert b"".join(compressed(layers.in_chunks(content, 65_537), compression)) == expected
        assert b"".join(compressed(layers.in_chunks(content, 1 << 20), compression)) == expected
        assert unwrapped(expected) == content


def test_no_compression_passes_the_chunks_through() -> None:
    assert b"".join(compressed([b"a", b"", b"b"], Compression.NONE)) == b"ab"


@EACH_CONTENT
def test_gzip_and_zstd_read_what_is_written(content: bytes) -> None:
    for compression, program in ((Compression.GZIP, "gzip"), (Compression.ZSTD, "zstd")):
        blob = b"".join(compressed(layers.in_chunks(content, 3000), compression))
        assert clients.run(program, "-dcq", stdin=blob) == content


def test_the_gzip_that_is_written_is_one_member_without_a_time() -> None:
    blob = b"".join(compressed([NOISE], Compression.GZIP))
    assert blob[:2] == b"\x1f\x8b"
    assert blob[3:8] == bytes(5), "no optional fields, no time"
    assert struct.unpack("<I", blob[-4:]) == (len(NOISE),)


def test_compressing_takes_no_more_than_it_needs_before_it_gives() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        source = random.Random(2)
        while True:
            taken += 1
            yield source.randbytes(1 << 20)

    for compression in Compression:
        taken = 0
        pieces = compressed(endless(), compression)
        assert sum(len(next(pieces)) for _ in range(4)) > 0
        assert taken < 64
        pieces.close()  # type: ignore[attr-defined]


def test_names_suffixes_and_revisions() -> None:
    assert [Compression(name).suffix for name in ("none", "gzip", "zstd")] == ["", ".gz", ".zst"]
    assert compression_revision(Compression.NONE) == ""
    assert len({compression_revision(compression) for compression in Compression}) == 3
