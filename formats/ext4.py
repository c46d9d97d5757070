"""An ext4 file system: the root disk of a virtual machine.

The law: it is laid out from the entries alone, so its size is known before the first byte, and it is streamed as it is
laid out; no program makes it, and nothing is mounted. The same image gives the same bytes: the file system's UUID comes
from the image, and all its times are the files' own. `e2fsck` finds nothing in it.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self

from formats.ext4layout import Layout, Node, Tree
from formats.ext4structs import BLOCK
from formats.formatter import Formatter, InvalidOption, Rootfs, SourceImage
from util.bytesize import parse_bytes
from util.compression import Compression

SPARE = 64 << 20
"""Bytes that are free in it where nobody says how many."""

_SPARES = range(1 << 20, (16 << 30) + 1)  # bytes
_OUTPUT = 256 << 10
_ZEROS = bytes(_OUTPUT)


class Ext4Disk(Formatter):
    """`ext4`: what Firecracker, Cloud Hypervisor and QEMU take for a root disk."""

    verb: ClassVar[str] = "ext4"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-raw-disk-image"
    file_extension: ClassVar[str] = ".ext4"
    summary: ClassVar[str] = "an ext4 file system, the root disk of a microVM"
    usage: ClassVar[str] = "curl -fLo root.ext4 {url} && truncate -s +1G root.ext4 && resize2fs root.ext4"
    default_compression: ClassVar[Compression] = Compression.NONE
    options: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"spare": "how many bytes are free in it: 0, or 1M, 2M, 4M and so on up to 16G; 64M by default"}
    )

    def __init__(self, spare: int = SPARE) -> None:
        """`spare` bytes are free in it, and inodes for as many."""
        self._spare = spare

    @property
    def chosen(self) -> Mapping[str, str]:
        """The spare room in bytes, unless it is the default."""
        return {} if self._spare == SPARE else {"spare": str(self._spare)}

    def with_options(self, values: Mapping[str, str]) -> Self:
        """Return the format with `spare` bytes free: none, or a power of two. Raises InvalidOption.

        Each is an image of its own that is kept, so there are not many; resize2fs adds what is missing.
        """
        super().with_options(values)
        text = values.get("spare")
        if text is None:
            return self
        spare = parse_bytes(text)
        if spare is None or (spare and (spare not in _SPARES or spare.bit_count() != 1)):
            raise InvalidOption(f"spare is {text!r}; allowed: 0, or 1M, 2M, 4M and so on up to 16G")
        return type(self)(spare)

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NotOnExt4, naming the entry."""
        self._layout(image, rootfs)

    def size(self, image: SourceImage, rootfs: Rootfs) -> int:
        """Return the exact size in bytes. Raises what `check` raises."""
        return self._layout(image, rootfs).size

    def stream(self, image: SourceImage, rootfs: Rootfs, *, folder: str) -> Iterator[bytes]:
        """Return the file system as it is laid out. Needs no folder."""
        layout = self._layout(image, rootfs)
        return _Disk(layout, rootfs).chunks(0, layout.size)

    def needs_all(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> bool:
        """Tell that no part needs another one."""
        return False

    def range_generator(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> Iterator[bytes]:
        """Return `length` bytes from `offset`, reading the layers in which files lie that lie there."""
        layout = self._layout(image, rootfs)
        if offset < 0 or length < 0 or offset + length > layout.size:
            raise ValueError(f"no range of {layout.size} bytes: offset {offset}, length {length}")
        return _Disk(layout, rootfs).chunks(offset, offset + length)

    def _layout(self, image: SourceImage, rootfs: Rootfs) -> Layout:
        return Layout(Tree(rootfs.entries()), spare=self._spare, identity=bytes.fromhex(image.image_id))


class _Disk:
    """The bytes of a layout."""

    def __init__(self, layout: Layout, rootfs: Rootfs) -> None:
        self._layout, self._rootfs = layout, rootfs

    def chunks(self, begin: int, end: int) -> Generator[bytes, None, None]:
        """Yield the bytes from `begin` to `end`."""
        parts: list[bytes] = []
        waiting, at = 0, begin
        with closing(self._placed(begin, end)) as placed:
            for start, piece in placed:
                part = piece[max(begin - start, 0) : max(end - start, 0)]
                for each in (*_zeros(max(start, begin) - at), part) if part else ():
                    parts.append(each)
                    waiting += len(each)
                    at += len(each)
                    if waiting >= _OUTPUT:
                        yield b"".join(parts)
                        parts, waiting = [], 0
        if parts:
            yield b"".join(parts)
        yield from _zeros(end - at)

    def _placed(self, begin: int, end: int) -> Generator[tuple[int, bytes], None, None]:
        """Yield what is not zeros between `begin` and `end`, and where in the file it stands, front to back."""
        content = self._content(begin, end)
        try:
            following = next(content, None)
            for piece in self._layout.pieces():
                start = piece.block * BLOCK
                while following is not None and following[0] < start:
                    yield following
                    following = next(content, None)
                if start < end and start + piece.blocks * BLOCK > begin:
                    for blocks in piece.render():
                        yield start, blocks
                        start += len(blocks)
            while following is not None:
                yield following
                following = next(content, None)
        finally:
            content.close()

    def _content(self, begin: int, end: int) -> Generator[tuple[int, bytes], None, None]:
        """Yield what files have between `begin` and `end`, in pieces that do not cross an extent's end.

        Where that is all of them, all of the tar is read, so that all that is wrong with it is found.
        """
        layout = self._layout
        wanted = [part for node in layout.contents for part in _parts(node, begin, end)]
        if not wanted:
            return
        first, last = wanted[0].tar, wanted[-1].tar + wanted[-1].length
        if begin <= layout.content_begin * BLOCK and end >= layout.content_end * BLOCK:
            first, last = 0, self._rootfs.size
        with closing(_Tar(self._rootfs.get_range(first, last - first), first)) as tar:
            for part in wanted:
                at = part.disk
                for piece in tar.slices(part.tar, part.tar + part.length):
                    yield at, piece
                    at += len(piece)
            tar.finish()


class _Part(NamedTuple):
    """`length` bytes of a file: where they stand in the file system, and where in the tar."""

    disk: int
    tar: int
    length: int


def _parts(node: Node, begin: int, end: int) -> Iterator[_Part]:
    """Yield what of a file stands between `begin` and `end` of the file system, extent by extent."""
    tar, left = node.payload, node.size
    for start, count in node.extents:
        disk, length = start * BLOCK, min(count * BLOCK, left)
        skipped, cut = max(begin - disk, 0), max(disk + length - end, 0)
        if skipped + cut < length:
            yield _Part(disk + skipped, tar + skipped, length - skipped - cut)
        tar += length
        left -= length


class _Tar:
    """What comes of a tar from `position` on, of which slices are asked for front to back."""

    def __init__(self, chunks: Iterator[bytes], position: int) -> None:
        self._chunks, self._position = chunks, position
        self._chunk = b""

    def slices(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `begin` to `end`."""
        while begin < end:
            stop = self._position + len(self._chunk)
            if begin < stop:
                part = self._chunk[begin - self._position : end - self._position]
                begin += len(part)
                yield part
            else:
                self._position, self._chunk = stop, next(self._chunks)

    def finish(self) -> None:
        """Read to the end: what is wrong with a layer may be told there."""
        for _ in self._chunks:
            pass

    def close(self) -> None:
        """Close the layers."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)
