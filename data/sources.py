"""Where images are imported from: an OCI layout as a folder or as a tar, and what `docker save` writes.

The law: a source gives one root descriptor and blobs by digest, each as a stream; it checks where bytes lie, and who
reads them checks what they are. Nothing is unpacked, no name in an archive reaches the file system, and no link leads
out of the archive or the folder. OCI image-spec, image-layout.md; Docker's image specification v1.2, "Combined Image
JSON + Filesystem Changeset Format".
"""

import errno
import json
import os
import posixpath
import stat
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from util.compression import decompressed
from util.digest import Digest, Readable
from util.document import MAX_DOCUMENT_SIZE, Fields, MalformedManifest, read_document
from util.oci import CONFIG_V2, INDEX_OCI, LAYER_V2, LAYER_V2_GZIP, LAYER_V2_ZSTD, MANIFEST_V2, Descriptor, ImageConfig
from util.problem import Damaged, Malformed, Missing, Problem, TooLarge

MAX_MEMBERS = 100_000
"""Members that an archive may have; it has one for each blob and a few more."""

_PIECE = 1 << 20
_MAX_HEADER = 4 << 20
_MAX_LINKS = 16
_REF = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_KINDS = ("oci", "oci-archive", "docker-archive")
_LAYER_TYPES = {b"\x1f\x8b": LAYER_V2_GZIP, b"\x28\xb5": LAYER_V2_ZSTD}


class InvalidSource(Problem):
    """A text that names no kind of source."""

    code = "SOURCE_INVALID"


class SourceNotFound(Missing):
    """A file or folder that is not there, or cannot be read."""

    code = "SOURCE_UNKNOWN"


class ImageNotInSource(Missing):
    """A source that has no image of the name asked for, or several and no name was said. `existing` holds the names."""

    code = "SOURCE_IMAGE_UNKNOWN"

    def __init__(self, fact: str, existing: Iterable[str]) -> None:
        self.existing = tuple(dict.fromkeys(existing))
        super().__init__(f"{fact}; there are: {', '.join(self.existing) or 'none'}")


class MalformedSource(Malformed):
    """A source that its specification does not allow, or that no honest program writes."""

    code = "SOURCE_MALFORMED"


class SourceTooLarge(TooLarge):
    """A source that has, or expands to, more than is accepted."""

    code = "SOURCE_TOO_LARGE"


class BlobNotInSource(Damaged):
    """A blob that a document of the source names, and the source does not have."""

    code = "SOURCE_BLOB_UNKNOWN"


class Source(ABC):
    """An image to import: `root` describes its manifest or its image index."""

    root: Descriptor

    @abstractmethod
    def open(self, digest: Digest) -> Readable:
        """Return the blob that should have `digest`; the caller verifies and closes it. Raises BlobNotInSource."""


@contextmanager
def open_source(source: str, *, max_size: int = 1 << 40) -> Iterator[Source]:
    """Give the image that `source` names: `oci:DIR[:REF]`, `oci-archive:FILE[:REF]` or `docker-archive:FILE[:REF]`.

    REF is a tag or name within the source, or a digest; a source of one image needs none. A compressed archive is
    uncompressed to a temporary file, at most `max_size` bytes of it. Raises InvalidSource, SourceNotFound,
    ImageNotInSource, MalformedSource, SourceTooLarge, BlobNotInSource.
    """
    kind, colon, rest = source.partition(":")
    if kind not in _KINDS or not colon or not rest:
        raise InvalidSource(f"{source!r} is no source; write oci:DIR, oci-archive:FILE or docker-archive:FILE")
    path, ref = _split(rest)
    try:
        with ExitStack() as stack:
            if kind == "oci":
                opened: Source = _Layout(_Folder(path), path, ref)
            else:
                file = stack.enter_context(open(path, "rb"))
                archive = _Archive(stack.enter_context(_plain(file, max_size, path)), path)
                opened = _Layout(archive, path, ref) if kind == "oci-archive" else _DockerArchive(archive, path, ref)
            yield opened
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        if error.filename != path:
            raise
        raise SourceNotFound(f"{path} cannot be read: {error.strerror}") from error


def _split(rest: str) -> tuple[str, str | None]:
    """Return path and REF. Both may have colons: the longest text that is a path is the path."""
    parts = rest.split(":")
    for count in range(len(parts), 0, -1):
        path = ":".join(parts[:count])
        if path and os.path.lexists(path):
            return path, ":".join(parts[count:]) or None
    return parts[0], ":".join(parts[1:]) or None


@contextmanager
def _plain(file: IO[bytes], max_size: int, path: str) -> Iterator[IO[bytes]]:
    """Give the archive in `file` without the compression that may be around it: members are read in any order."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise MalformedSource(f"{path} is no file")
    magic = file.read(4)
    file.seek(0)
    if magic[:2] != b"\x1f\x8b" and magic != b"\x28\xb5\x2f\xfd":
        yield file
        return
    with tempfile.TemporaryFile(prefix="registry-verbs-") as plain:
        size = 0
        for piece in decompressed(file, what=f"archive {path}"):
            size += len(piece)
            if size > max_size:
                raise SourceTooLarge(f"{path} expands to more than {max_size} bytes (VERBS_MAX_SIZE)")
            plain.write(piece)
        plain.seek(0)
        yield plain


# --- Files by name: a folder or an archive -------------------------------------------------------------------------


class _Files(ABC):
    @abstractmethod
    def open(self, name: str) -> Readable | None:
        """Return the file `name`, None where there is none. Raises MalformedSource for what is no file."""

    def document(self, name: str) -> bytes | None:
        """Return the whole of a small file, None where there is none."""
        stream = self.open(name)
        if stream is None:
            return None
        try:
            content = _read(stream, MAX_DOCUMENT_SIZE + 1)
        finally:
            stream.close()
        if len(content) > MAX_DOCUMENT_SIZE:
            raise SourceTooLarge(f"{name} has more than {MAX_DOCUMENT_SIZE} bytes")
        return content


class _Folder(_Files):
    def __init__(self, path: str) -> None:
        self._root = os.path.realpath(path)
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))

    def open(self, name: str) -> Readable | None:
        path = os.path.realpath(os.path.join(self._root, name))
        if not path.startswith(os.path.join(self._root, "")):
            raise MalformedSource(f"{name} is a link that leads out of {self._root}")
        try:
            # Without O_NONBLOCK a named pipe would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise SourceNotFound(f"{path} cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise MalformedSource(f"{name} is no file")
        return os.fdopen(descriptor, "rb")


class _Archive(_Files):
    def __init__(self, file: IO[bytes], path: str) -> None:
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(fileobj=_Guarded(file, path), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
            for count, member in enumerate(self._tar):
                if count >= MAX_MEMBERS:
                    raise SourceTooLarge(f"{path} has more than {MAX_MEMBERS} members")
                name = self._inside(member.name, member.name)
                if member.issym():
                    self._inside(posixpath.join(posixpath.dirname(member.name), member.linkname), member.name)
                elif member.islnk():
                    self._inside(member.linkname, member.name)
                self._members[name] = member
        except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
            raise MalformedSource(f"{path} is no sound tar archive: {error}") from None

    def _inside(self, name: str, member: str) -> str:
        normal = posixpath.normpath(name)
        if name.startswith("/") or normal == ".." or normal.startswith("../"):
            raise MalformedSource(f"{self._path} has a member that leads out of it: {member!r} ({name!r})")
        return normal

    def open(self, name: str) -> Readable | None:
        asked = name
        for _ in range(_MAX_LINKS):
            name = self._inside(name, asked)
            member = self._members.get(name)
            if member is None:
                return None
            if member.issym():
                name = posixpath.join(posixpath.dirname(name), member.linkname)
            elif member.islnk():
                name = member.linkname
            else:
                break
        else:
            raise MalformedSource(f"{self._path}: {asked} is a link without an end")
        stream = self._tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if stream is None:
            raise MalformedSource(f"{self._path}: {name} is no file")
        return _Complete(stream, member.size, f"{self._path}: {name}")


class _Guarded:
    """An archive's file that is never read in pieces a reader of honest archives has no need for."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path = file, path
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise MalformedSource(f"{self._path} has a header of {size} bytes; at most {_MAX_HEADER} are accepted")
        return self._file.read(size)

    def close(self) -> None:
        """Do nothing: the file is its opener's."""


class _Complete:
    """A member of an archive, which an archive that was cut does not have in full."""

    def __init__(self, stream: IO[bytes], size: int, what: str) -> None:
        self._stream, self._left, self._what = stream, size, what

    def read(self, size: int = -1, /) -> bytes:
        try:
            piece = self._stream.read(min(_PIECE, size if size >= 0 else _PIECE, self._left))
        except (tarfile.TarError, ValueError) as error:
            raise MalformedSource(f"{self._what} is cut short: {error}") from None
        self._left -= len(piece)
        if self._left and not piece and size:
            raise MalformedSource(f"{self._what} is cut short: {self._left} bytes are missing")
        return piece

    def close(self) -> None:
        self._stream.close()


# --- The kinds -----------------------------------------------------------------------------------------------------


class _Layout(Source):
    """An OCI layout."""

    def __init__(self, files: _Files, path: str, ref: str | None) -> None:
        self._files, self._path = files, path
        marker, index = files.document("oci-layout"), files.document("index.json")
        if marker is None or index is None:
            raise MalformedSource(
                f"{path} is no OCI layout: {'oci-layout' if marker is None else 'index.json'} is missing"
            )
        version = read_document(marker, "file oci-layout", MalformedManifest).text("imageLayoutVersion")
        if version != "1.0.0":
            raise MalformedSource(f"{path} is an OCI layout of version {version!r}; 1.0.0 is known")
        self._index = index
        self.root = self._choose(read_document(index, "index.json", MalformedManifest).each("manifests"), ref)

    def _choose(self, entries: Sequence[Fields], ref: str | None) -> Descriptor:
        named: list[tuple[Descriptor, tuple[str, ...]]] = []
        platforms: set[str] = set()
        for entry in entries:
            annotations = entry.text_map("annotations")
            entry.required("size")
            root = Descriptor(entry.text("mediaType") or "", entry.digest("digest"), entry.number("size") or 0)
            named.append((root, tuple(annotations[key] for key in _REF if key in annotations)))
            if (platform := entry.fields("platform")) is not None:
                platforms.add(json.dumps(platform.values, sort_keys=True))
        suited = {root.digest: root for root, names in named if ref is None or ref in (*names, str(root.digest))}
        if len(suited) == 1:
            return next(iter(suited.values()))
        if len(suited) == len(named) == len(platforms) and len({names for _, names in named}) == 1:
            # One image for several platforms, without an index of its own: that of the layout is it.
            return Descriptor(INDEX_OCI, Digest.of(self._index), len(self._index))
        existing = [names[0] if names else str(root.digest) for root, names in named]
        if ref is None:
            raise ImageNotInSource(f"{self._path} has {len(suited)} images, and none was named", existing)
        raise ImageNotInSource(f"{self._path} has {len(suited)} images called {ref!r}", existing)

    def open(self, digest: Digest) -> Readable:
        if digest == self.root.digest == Digest.of(self._index):
            return _Bytes(self._index)
        stream = self._files.open(f"blobs/{digest.algorithm}/{digest.hex}")
        if stream is None:
            raise BlobNotInSource(f"{self._path} does not have {digest}")
        return stream


class _DockerArchive(Source):
    """What `docker save` writes, as an image of Docker's schema 2: its layers as they lie there, one fixed manifest."""

    def __init__(self, archive: _Archive, path: str, ref: str | None) -> None:
        self._path = path
        self._opens: dict[Digest, Callable[[], Readable | None]] = {}
        content = archive.document("manifest.json")
        if content is None:
            raise MalformedSource(f"{path} is no archive of `docker save`: manifest.json is missing")
        listed = read_document(b'{"images":' + content + b"}", "manifest.json", MalformedManifest)
        image = self._choose(listed.each("images"), ref)
        names = image.texts("Layers")
        config_name = image.required_text("Config")
        config_content = archive.document(config_name)
        if config_content is None:
            raise BlobNotInSource(f"{path} does not have the configuration {config_name}")
        config = Descriptor(CONFIG_V2, Digest.of(config_content), len(config_content))
        diff_ids = ImageConfig.parse(config_content).diff_ids_of(names)
        layers = [self._layer(archive, name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True)]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_V2,
                "config": _document_of(config),
                "layers": [_document_of(layer) for layer in layers],
            },
            separators=(",", ":"),
        ).encode()
        self.root = Descriptor(MANIFEST_V2, Digest.of(manifest), len(manifest))
        self._opens[config.digest] = lambda: _Bytes(config_content)
        self._opens[self.root.digest] = lambda: _Bytes(manifest)

    def _choose(self, images: Sequence[Fields], ref: str | None) -> Fields:
        suited = [
            image
            for at, image in enumerate(images)
            if ref is None or ref == f"@{at}" or _familiar(ref) in map(_familiar, image.texts("RepoTags"))
        ]
        if len(suited) == 1:
            return suited[0]
        existing = [tag for at, image in enumerate(images) for tag in image.texts("RepoTags") or (f"@{at}",)]
        fact = "and none was named" if ref is None else f"called {ref!r}"
        raise ImageNotInSource(f"{self._path} has {len(suited)} images {fact}", existing)

    def _layer(self, archive: _Archive, name: str, diff_id: Digest) -> Descriptor:
        def opened() -> Readable:
            stream = archive.open(name)
            if stream is None:
                raise BlobNotInSource(f"{self._path} does not have the layer {name}")
            return stream

        stream = opened()
        try:
            hasher, size, piece = diff_id.hasher(), 0, stream.read(_PIECE)
            media_type = _LAYER_TYPES.get(piece[:2], LAYER_V2)
            while piece:
                hasher.update(piece)
                size += len(piece)
                piece = stream.read(_PIECE)
        finally:
            stream.close()
        digest = Digest(diff_id.algorithm, hasher.hexdigest())
        self._opens[digest] = opened
        return Descriptor(media_type, digest, size)

    def open(self, digest: Digest) -> Readable:
        stream = self._opens[digest]() if digest in self._opens else None
        if stream is None:
            raise BlobNotInSource(f"{self._path} does not have {digest}")
        return stream


class _Bytes:
    """Bytes as a stream."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def read(self, size: int = -1, /) -> bytes:
        end = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:end], self._rest[end:]
        return piece

    def close(self) -> None:
        self._rest = b""


def _read(stream: Readable, size: int) -> bytes:
    """Return `size` bytes of `stream`, fewer where it ends before."""
    pieces = []
    while size and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _document_of(descriptor: Descriptor) -> Mapping[str, str | int]:
    return {"mediaType": descriptor.media_type, "size": descriptor.size, "digest": str(descriptor.digest)}


def _familiar(name: str) -> str:
    """Return the name of an image in full, as Docker completes it."""
    host, slash, _ = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        name = f"docker.io/{name}" if slash else f"docker.io/library/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
