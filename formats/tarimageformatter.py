"""The contract of a format that is a tar: what stands around a root file system in one stream.

The law: that of every format (formatter.py), and the number of bytes is known before the first.
`formats.testing.FormatterTests` is the suite that a package's own class passes.
"""

from abc import abstractmethod
from collections.abc import Iterator

from formats.formatter import Formatter, Rootfs, SourceImage
from util.digest import Digest
from util.tarheader import padding, render_header

__all__ = ["Rootfs", "SourceImage", "TarImageFormatter"]

_NOT_YET = Digest("sha256", "0" * 64)
_ANOTHER = Digest("sha256", "1" * 64)


class TarImageFormatter(Formatter):
    """A format that is a tar."""

    @abstractmethod
    def head(self, image: SourceImage, rootfs: Rootfs) -> bytes:
        """Return what stands before the root file system; `rootfs.diff_id` is not known yet."""

    @abstractmethod
    def tail(self, image: SourceImage, rootfs: Rootfs, diff_id: Digest) -> bytes:
        """Return what stands after the root file system, up to the end. Its length does not depend on `diff_id`."""

    def size(self, image: SourceImage, rootfs: Rootfs) -> int:
        """Return the exact length of the stream in bytes, before any layer is read. Raises what `check` raises."""
        self.check(image, rootfs)
        return len(self.head(image, rootfs)) + rootfs.size + len(self.tail(image, rootfs, _NOT_YET))

    def stream(self, image: SourceImage, rootfs: Rootfs, *, folder: str) -> Iterator[bytes]:
        """Return what `stream_generator` does, which needs no folder."""
        return self.stream_generator(image, rootfs)

    def stream_generator(self, image: SourceImage, rootfs: Rootfs) -> Iterator[bytes]:
        """Return the stream. Closing it closes the layers.

        What `check` raises is raised here; no layer is opened before the first byte is asked for.
        """
        self.check(image, rootfs)
        return self._stream(image, rootfs, self.head(image, rootfs))

    def _stream(self, image: SourceImage, rootfs: Rootfs, head: bytes) -> Iterator[bytes]:
        if head:
            yield head
        diff_id = _NOT_YET
        if self._tells_diff_id(image, rootfs):
            yield from rootfs.get_generator()
            diff_id = rootfs.diff_id
        else:
            # Hashing takes half as long as inflating.
            yield from rootfs.get_range(0, rootfs.size)
        tail = self.tail(image, rootfs, diff_id)
        if tail:
            yield tail

    def _tells_diff_id(self, image: SourceImage, rootfs: Rootfs) -> bool:
        return self.tail(image, rootfs, _NOT_YET) != self.tail(image, rootfs, _ANOTHER)

    def needs_all(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> bool:
        """Tell whether `range_generator` would have to read all layers, because the tail depends on all of them."""
        if offset + length <= len(self.head(image, rootfs)) + rootfs.size:
            return False
        return self._tells_diff_id(image, rootfs)

    def range_generator(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> Iterator[bytes]:
        """Return `length` bytes of the stream from `offset`. Closing it closes the layers.

        Of the layers that is read which it takes, and all where `needs_all`. Raises what `check` raises, and ValueError
        where the stream has no such bytes, before a layer is opened.
        """
        size = self.size(image, rootfs)
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"no range of {size} bytes: offset {offset}, length {length}")
        return self._range(image, rootfs, offset, offset + length)

    def _range(self, image: SourceImage, rootfs: Rootfs, begin: int, end: int) -> Iterator[bytes]:
        head = self.head(image, rootfs)
        if head[begin:end]:
            yield head[begin:end]
        first, last = max(begin - len(head), 0), min(max(end - len(head), 0), rootfs.size)
        if self.needs_all(image, rootfs, begin, end - begin):
            yield from part_of(rootfs.get_generator(), first, last)
            diff_id = rootfs.diff_id
        else:
            if first < last:
                yield from rootfs.get_range(first, last - first)
            diff_id = _NOT_YET
        before = len(head) + rootfs.size
        if end > before:
            yield self.tail(image, rootfs, diff_id)[max(begin - before, 0) : end - before]

    @classmethod
    def tar_file(cls, name: str, contents: bytes, mtime: int = 0) -> bytes:
        """Return a regular file's entry: header, payload, padding. `mtime` in seconds since the epoch."""
        return cls.tar_file_header(name, len(contents), mtime) + contents + cls.tar_file_padding(len(contents))

    @staticmethod
    def tar_file_header(name: str, file_size: int, mtime: int = 0) -> bytes:
        """Return the header of a regular file whose payload of `file_size` bytes, and padding, the caller adds."""
        return render_header(name.encode(), mode=0o644, size=file_size, mtime=mtime)

    @staticmethod
    def tar_file_padding(length: int) -> bytes:
        """Return what follows a payload of `length` bytes up to the next header."""
        return bytes(padding(length))

    @staticmethod
    def tar_folder(name: str, mtime: int = 0) -> bytes:
        """Return a directory's entry, readable by everybody."""
        return render_header(f"{name.rstrip('/')}/".encode(), kind=b"5", mode=0o755, mtime=mtime)


def part_of(chunks: Iterator[bytes], begin: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `begin` to `end`, and read on to the end of `chunks`."""
    position = 0
    try:
        for chunk in chunks:
            part = chunk[max(begin - position, 0) : max(end - position, 0)]
            position += len(chunk)
            if part:
                yield part
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
