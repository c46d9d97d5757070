"""Compression of blobs, in and out: none, gzip, zstd.

The law, inward: what a stream is, its first bytes say, never a media type. Every member of a gzip stream and every
frame of a zstd stream is read, skippable ones too; a wrong CRC, a cut stream and trailing garbage are errors. A piece
handed on is never larger than `PIECE`, whatever the input claims to expand to.

The law, outward: the same bytes come out in whatever pieces the input came in, with no clock, name or host in them.
They belong to one version of the compressor, so `compression_revision` is part of a derived image's key.

RFC 1952 (gzip), RFC 8878 (zstd).
"""

import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from importlib.metadata import version
from typing import cast

from isal import igzip_lib, isal_zlib

from util.digest import Readable
from util.problem import Damaged, Malformed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 256 << 10
"""The most bytes that one decompressed piece has."""

_READ = 256 << 10
# The library's own type hints call this class an instance.
_IsalError = cast("type[Exception]", igzip_lib.IsalError)
_MAX_GZIP_HEADER = 1 << 20
_GZIP_LEVEL = 1
_GZIP_BLOCK = 1 << 20
_ZSTD_LEVEL = 3
_ZSTD_JOB = 2 << 20  # left to itself it takes eight, of which several wait
_WINDOW = 32 << 10

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = frozenset(struct.pack("<I", 0x184D2A50 + i) for i in range(16))
_OTHERS = {b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}
_BZIP2_BLOCK = b"1AY&SY"


class CorruptStream(Damaged):
    """A compressed stream that breaks its own format, or whose checksum does not fit its content."""

    code = "STREAM_CORRUPT"


class TruncatedStream(Damaged):
    """A compressed stream that ends before its end."""

    code = "STREAM_TRUNCATED"


class UnsupportedCompression(Malformed):
    """A stream in a compression that no specification of images allows."""

    code = "COMPRESSION_UNSUPPORTED"


class Compression(StrEnum):
    """What the bytes of a stream are wrapped in."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"

    @property
    def suffix(self) -> str:
        """What a file name gets for it, with its dot."""
        return {Compression.NONE: "", Compression.GZIP: ".gz", Compression.ZSTD: ".zst"}[self]


def compression_revision(compression: Compression) -> str:
    """Return what, besides the input, decides the bytes of `compressed`: program, version, level."""
    match compression:
        case Compression.GZIP:
            # isal finds matches by another hash on another kind of processor.
            return f"isal {version('isal')} {os.uname().machine} level {_GZIP_LEVEL} block {_GZIP_BLOCK}"
        case Compression.ZSTD:
            return f"zstd {zstd.zstd_version} level {_ZSTD_LEVEL} job {_ZSTD_JOB}"
        case Compression.NONE:
            return ""


def decompressed(stream: Readable, *, what: str = "layer") -> Iterator[bytes]:
    """Yield the content of `stream`, unwrapped if it is compressed. The caller closes `stream`.

    `what` is how errors call the stream. Raises CorruptStream, TruncatedStream or UnsupportedCompression; what came
    before is then not to be trusted as a whole.
    """
    head = stream.read(_READ)
    while 0 < len(head) < 10 and (more := stream.read(_READ)):
        head += more
    if head.startswith(_GZIP_MAGIC):
        return _gunzipped(head, stream, what)
    if head[:4] == _ZSTD_MAGIC or head[:4] in _SKIPPABLE:
        return _unzstd(head, stream, what)
    for magic, name in _OTHERS.items():
        if head.startswith(magic) and (name != "bzip2" or head[4:10] == _BZIP2_BLOCK):
            raise UnsupportedCompression(f"{what} is compressed with {name}; only gzip and zstd can be read")
    return _plain(head, stream)


def _plain(head: bytes, stream: Readable) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(_READ)


def _gunzipped(pending: bytes, stream: Readable, what: str) -> Iterator[bytes]:
    while True:
        # The header is parsed here, because isal rejects an FHCRC header that arrives in two pieces.
        while (start := _gzip_header_size(pending, what)) is None:
            more = stream.read(_READ)
            if not more:
                raise TruncatedStream(f"{what} ends within a gzip header")
            pending += more
        inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
        pending = pending[start:]
        while not inflater.eof:
            if inflater.needs_input and not pending:
                pending = stream.read(_READ)
                if not pending:
                    raise TruncatedStream(f"{what} ends within its gzip stream")
            try:
                piece = inflater.decompress(pending, PIECE)
            except _IsalError as error:
                raise CorruptStream(f"{what} is not a sound gzip stream: {error}") from error
            pending = b""
            if piece:
                yield piece
        pending = inflater.unused_data or stream.read(_READ)
        # Writers that pad to whole records leave zeros after the last member, as gzip(1) allows.
        while pending and not pending.strip(b"\0"):
            pending = stream.read(_READ)
        if pending.startswith(b"\0"):
            pending = pending.lstrip(b"\0")
        if not pending:
            return
        while len(pending) < len(_GZIP_MAGIC) and (more := stream.read(_READ)):
            pending += more
        if not pending.startswith(_GZIP_MAGIC):
            raise CorruptStream(f"{what} has bytes after its gzip stream that are no gzip member")


def _gzip_header_size(data: bytes, what: str) -> int | None:
    """Return the length of the member header that `data` starts with, or None when `data` ends within it."""
    if len(data) < 10:
        return None
    method, flags = data[2], data[3]
    if method != 8 or flags & 0xE0:
        raise CorruptStream(f"{what} has a gzip header with an unknown method or flag")
    end = 10
    if flags & 4:
        if len(data) < end + 2:
            return None
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            end = data.find(b"\0", end) + 1
            if end == 0:
                if len(data) > _MAX_GZIP_HEADER:
                    raise CorruptStream(f"{what} has a gzip header of more than {_MAX_GZIP_HEADER} bytes")
                return None
    if flags & 2:
        if len(data) < end + 2:
            return None
        if isal_zlib.crc32(data[:end]) & 0xFFFF != int.from_bytes(data[end : end + 2], "little"):
            raise CorruptStream(f"{what} has a gzip header with a wrong checksum")
        end += 2
    return end if len(data) >= end else None


def _unzstd(pending: bytes, stream: Readable, what: str) -> Iterator[bytes]:
    while pending:
        inflater = zstd.ZstdDecompressor()
        while not inflater.eof:
            if inflater.needs_input and not pending:
                pending = stream.read(_READ)
                if not pending:
                    raise TruncatedStream(f"{what} ends within a zstd frame")
            try:
                piece = inflater.decompress(pending, PIECE)
            except zstd.ZstdError as error:
                raise CorruptStream(f"{what} is not a sound zstd stream: {error}") from error
            pending = b""
            if piece:
                yield piece
        pending = inflater.unused_data or stream.read(_READ)


def compressed(chunks: Iterable[bytes], compression: Compression) -> Iterator[bytes]:
    """Yield `chunks` wrapped in `compression`, as one gzip member or one zstd frame.

    The compressor runs beside the caller, on other cores where there are some; it holds a few MiB at most.
    """
    match compression:
        case Compression.NONE:
            return iter(chunks)
        case Compression.GZIP:
            return _gzipped(chunks)
        case Compression.ZSTD:
            return _zstd(chunks)


def in_blocks(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes of `chunks` in blocks of exactly `size` bytes, the last one shorter."""
    parts: list[bytes | memoryview] = []
    missing = size
    for chunk in chunks:
        if not parts and len(chunk) == size:
            yield chunk
            continue
        view = memoryview(chunk)
        while len(view) >= missing:
            parts.append(view[:missing])
            yield b"".join(parts)
            view = view[missing:]
            parts, missing = [], size
        if view:
            parts.append(view)
            missing -= len(view)
    if parts:
        yield b"".join(parts)


def _gzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """One gzip member whose blocks are deflated side by side, each with the 32 KiB before it as its dictionary."""
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    crc, length, window = 0, 0, b""
    with ThreadPoolExecutor(2, thread_name_prefix="gzip") as pool:
        running: deque[tuple[int, Future[tuple[bytes, int]]]] = deque()

        def finished() -> bytes:
            nonlocal crc, length
            size, future = running.popleft()
            deflated, block_crc = future.result()
            crc = isal_zlib.crc32_combine(crc, block_crc, size)
            length += size
            return deflated

        for block in in_blocks(chunks, _GZIP_BLOCK):
            running.append((len(block), pool.submit(_deflated_block, block, window)))
            window = block[-_WINDOW:]
            if len(running) > 2:
                yield finished()
        while running:
            yield finished()
    yield b"\x03\0" + struct.pack("<II", crc, length & 0xFFFFFFFF)


def _deflated_block(block: bytes, window: bytes) -> tuple[bytes, int]:
    """Return `block` as deflate blocks that end on a byte and do not end the stream, and its CRC-32."""
    raw = -isal_zlib.MAX_WBITS
    deflater = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, raw, isal_zlib.DEF_MEM_LEVEL, 0, window)
    return deflater.compress(block) + deflater.flush(isal_zlib.Z_SYNC_FLUSH), isal_zlib.crc32(block)


def _zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parameter = zstd.CompressionParameter
    deflater = zstd.ZstdCompressor(
        # One worker: compression runs beside the caller, and cuts its jobs by position, not by call.
        options={
            parameter.compression_level: _ZSTD_LEVEL,
            parameter.nb_workers: 1,
            parameter.job_size: _ZSTD_JOB,
            parameter.checksum_flag: 1,
        }
    )
    put: Callable[[bytes], bytes] = deflater.compress
    for block in in_blocks(chunks, _GZIP_BLOCK):
        if out := put(block):
            yield out
    yield deflater.flush()
