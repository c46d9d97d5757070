"""The contract of a format: what stands around a root file system in one tar stream.

The law: a format is a pure function of a SourceImage and a Rootfs. It reads no clock, no database and no setting; the
same two give the same bytes, whose number is known before the first. Whatever it cannot express it refuses before the
first byte. `revision` goes up with every change of the bytes, or old ones are served from storage for ever.

A package adds a verb by naming a class in the entry point group `registry_verbs.formats`, under the class's `verb`;
`formats.testing.FormatterTests` is the suite that the class then passes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from util.compression import Compression
from util.digest import Digest
from util.oci import ImageConfig, Platform
from util.tarheader import padding, render_header

_NOT_YET = Digest("sha256", "0" * 64)
_ANOTHER = Digest("sha256", "1" * 64)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """All that a format may know of the image.

    `host` may carry a port. `tag` is what the image was asked for by: a tag, or a manifest's digest (`sha256:…`).
    `image_id` is 64 hexadecimal digits, the same for the same derived image: it stands wherever a format wants an id.
    """

    host: str
    url_scheme: str
    namespace: str
    repository: str
    tag: str
    manifest_digest: Digest
    platform: Platform
    config: ImageConfig
    layer_count: int
    image_id: str

    @property
    def path(self) -> str:
        """Namespace and repository."""
        return f"{self.namespace}/{self.repository}"

    @property
    def reference(self) -> str:
        """The image's full name, as it is pulled by: `host/namespace/repository:tag`, or `…@sha256:…`."""
        return f"{self.host}/{self.path}{'@' if ':' in self.tag else ':'}{self.tag}"


class Rootfs(Protocol):
    """The root file system of the image: all its layers merged into one tar. Its names carry the `path_prefix`."""

    @property
    def size(self) -> int:
        """How many bytes the generator will yield: a whole tar, its end of archive included."""

    @property
    def diff_id(self) -> Digest:
        """The digest of what was yielded. Raises NotComputed before the generator has ended."""

    def get_generator(self) -> Iterator[bytes]:
        """Yield the tar. Closing the generator closes every layer."""

    def get_range(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of the tar from `offset`. Layers without a byte in it are not opened."""

    def kept_file(self, path: bytes) -> bytes | None:
        """Return the content of `etc/passwd` or `etc/group`, None where the image has none. No prefix in `path`."""


class TarImageFormatter(ABC):
    """A format. Instances hold no state; one serves many requests at once."""

    verb: ClassVar[str]
    """What it is asked for by, in the URL and on the command line: lower-case letters, digits, dashes."""
    revision: ClassVar[int]
    """Goes up with any change of output bytes; part of a derived image's key."""
    media_type: ClassVar[str]
    """Of the uncompressed output."""
    file_extension: ClassVar[str]
    """With its dot. To `.tar` a compression's own is added."""
    summary: ClassVar[str]
    """One line for people."""
    usage: ClassVar[str]
    """One line to copy, with `{url}` where the address belongs."""
    default_compression: ClassVar[Compression]
    path_prefix: ClassVar[bytes] = b""
    """Stands before every name of the root file system: `rootfs/`, or nothing."""

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:  # noqa: B027 - most formats have words for all images
        """Raise Inexpressible, naming the field, for an image that the format has no words for. Reads no layer."""

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
            yield from _part(rootfs.get_generator(), first, last)
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


def _part(chunks: Iterator[bytes], begin: int, end: int) -> Iterator[bytes]:
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
