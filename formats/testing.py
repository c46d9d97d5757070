"""The suite that every formatter passes, ours or a stranger's; and what it formats.

The law: it asks only what the contract says (formats/tarimageformatter.py), and reads the output with Python's tarfile,
which shares no line with ours. A package's own test is a few lines:

    class TestFloppy(FormatterTests):
        formatter = Floppy()

ArchiveFormatterTests are for formats that put something else into a tar, SizedFormatterTests for those that are no tar
and know their size, AnyFormatterTests for those that do not.

Run by pytest. What a format refuses goes into `refused`, the hash of its output into `pinned`.
"""

# ruff: noqa: S101 - this is a test suite

import hashlib
import io
import json
import posixpath
import random
import re
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any, ClassVar

import formats
from formats.formatter import Formatter, InvalidOption, SourceImage
from formats.tarimageformatter import TarImageFormatter
from util.compression import Compression
from util.digest import Digest
from util.oci import ImageConfig, Platform
from util.packedlayer import packed
from util.problem import Inexpressible
from util.rootfschanges import RootfsChanges
from util.written import Written

CONFIG: Mapping[str, Any] = {
    "created": "2026-02-03T04:05:06.789Z",
    "author": "Ada <ada@example.com>",
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "User": "ada",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=a=b"],
        "Entrypoint": ["/usr/bin/greet", "--loud"],
        "Cmd": ["world"],
        "WorkingDir": "/home/ada",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/var/lib/greet": {}},
        "Labels": {"org.example.purpose": "to be formatted"},
        "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD", "greet", "--check"], "Interval": 30000000000},
        "OnBuild": ["RUN true"],
        "Shell": ["/bin/bash", "-c"],
    },
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{at:064x}" for at in range(2)]},
    "history": [
        {"created": "2026-02-03T04:05:05Z", "created_by": "ADD base"},
        {"created": "2026-02-03T04:05:06Z", "created_by": "ENV GREETING=a=b", "empty_layer": True},
        {"created": "2026-02-03T04:05:06Z", "created_by": "COPY greet", "comment": "the second layer"},
    ],
}
FILES: Mapping[str, bytes | None] = {
    "bin": None,
    "bin/sh": b"#!shell\n",
    "etc": None,
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nada:x:1000:100:Ada:/home/ada:/bin/sh\n",
    "etc/motd": b"x" * 70_000,
    "usr": None,
}


def source_image(config: Mapping[str, Any] = CONFIG, **changes: Any) -> SourceImage:
    """Return an image with `config`, of two layers unless `changes` say otherwise."""
    parsed = ImageConfig.parse(json.dumps(config).encode())
    image: dict[str, Any] = {
        "host": "registry.example.com:8443",
        "url_scheme": "https",
        "namespace": "acme",
        "repository": "greet",
        "tag": "1.0",
        "manifest_digest": Digest.of(b"manifest"),
        "platform": parsed.platform,
        "config": parsed,
        "layer_count": 2,
        "image_id": hashlib.sha256(b"image").hexdigest(),
    }
    return SourceImage(**(image | changes))


class MemoryRootfs:
    """A root file system of `files` (None for a directory), whose generator can be watched."""

    def __init__(
        self,
        files: Mapping[str, bytes | None] = FILES,
        *,
        path_prefix: bytes = b"",
        changes: RootfsChanges | None = None,
        chunk_size: int = 4096,
        breaks: bool = False,
    ) -> None:
        prefix = path_prefix.decode()
        files = files if changes is None else _changed(files, changes)
        self.content = _tar(
            ([(prefix.rstrip("/"), None)] if prefix else []) + [(prefix + n, c) for n, c in files.items()]
        )
        self.opened = 0
        self.closed = 0
        self.ranged = 0
        self._files = files
        self._prefix = prefix
        self._chunk_size = chunk_size
        self._breaks = breaks
        self._diff_id: Digest | None = None

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def diff_id(self) -> Digest:
        """Return the digest of `content`, once it has been read to the end; fails before."""
        assert self._diff_id is not None, "the diff_id is asked for before the root file system has ended"
        return self._diff_id

    def get_generator(self) -> Iterator[bytes]:
        self.opened += 1
        try:
            for at in range(0, self.size, self._chunk_size):
                if self._breaks and at:
                    raise BrokenLayerError
                yield self.content[at : at + self._chunk_size]
            self._diff_id = Digest.of(self.content)
        finally:
            self.closed += 1

    def get_range(self, offset: int, length: int) -> Iterator[bytes]:
        self.opened += 1
        self.ranged += length
        try:
            for at in range(offset, offset + length, self._chunk_size):
                if self._breaks and at > offset:
                    raise BrokenLayerError
                yield self.content[at : min(at + self._chunk_size, offset + length)]
        finally:
            self.closed += 1

    def entries(self) -> Iterator[Written]:
        skipped = self._prefix
        with tarfile.open(fileobj=io.BytesIO(self.content), mode="r:") as tar:
            for info in tar:
                path = info.name.encode()[len(skipped) :]
                kind = int.from_bytes(info.type)
                yield Written(path, kind, info.mode, info.uid, info.gid, int(info.mtime), info.size, info.offset_data)

    def kept_file(self, path: bytes) -> bytes | None:
        return self._files.get(path.decode())

    def folder(self, path: bytes) -> tuple[int, int, int] | None:
        name = path.decode()
        return (0o755, 0, 0) if name in self._files and self._files[name] is None else None


class BrokenLayerError(Exception):
    """What a layer raises that turns out to be damaged on the way."""


class AnyFormatterTests:
    """What every formatter does, whatever its kind. A subclass sets `formatter`."""

    formatter: ClassVar[Formatter]
    refused: ClassVar[Sequence[SourceImage]] = ()
    """Images that the format has no words for."""
    bare: ClassVar[SourceImage] = source_image({"config": {"Cmd": ["true"]}})
    """An image that the format takes though there is nothing in it."""
    pinned: ClassVar[Mapping[int, str]] = {}
    """SHA-256 of the output for `source_image()` and `MemoryRootfs`, by revision: who changes one changes the other."""
    images: ClassVar[Sequence[SourceImage]] = (
        source_image(),
        source_image(host="localhost", tag=f"sha256:{'0f' * 32}"),
        source_image({"config": None, "history": None}, layer_count=0),
        source_image({**CONFIG, "architecture": "arm"}, platform=Platform("linux", "arm", "v7")),
        source_image({"config": {"Cmd": ["größer", "a b"], "Labels": {"ключ": "значение"}}, "author": "Ünal 🐳"}),
    )

    def rootfs(self, image: SourceImage | None = None, **options: Any) -> MemoryRootfs:
        """Return a root file system as `formatter` wants it, for `image` or for any."""
        changes = self.formatter.changes(image or source_image())
        return MemoryRootfs(path_prefix=self.formatter.path_prefix, changes=changes, **options)

    def told(self, image: SourceImage, rootfs: MemoryRootfs) -> SourceImage:
        """Return `image` as the format gets it, which may want to know its layer."""
        if not self.formatter.packs:
            return image
        return replace(image, layer=packed(iter([rootfs.content]), self.formatter.default_compression))

    def stream(self, image: SourceImage, rootfs: MemoryRootfs) -> Iterator[bytes]:
        """Return the stream as it is asked for."""
        return self.formatter.stream(self.told(image, rootfs), rootfs, folder=tempfile.gettempdir())

    def output(self, image: SourceImage, **options: Any) -> bytes:
        """Return the whole stream."""
        return b"".join(self.stream(image, self.rootfs(image, **options)))

    def test_it_says_what_it_is(self) -> None:
        """Every word of the contract that is shown to people or goes into a key."""
        said = self.formatter
        assert re.fullmatch(r"[a-z][a-z0-9-]*", said.verb)
        assert type(said.revision) is int
        assert said.revision >= 1
        assert re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", said.media_type)
        assert re.fullmatch(r"(\.[a-z0-9]+)+", said.file_extension)
        assert said.summary
        assert "\n" not in said.summary + said.usage
        assert "https://example.com/x" in said.usage.format(url="https://example.com/x")
        assert isinstance(said.default_compression, Compression)
        assert re.fullmatch(rb"([a-z]+/)?", said.path_prefix)
        assert said.unavailable is None
        assert said.program is None or re.search(r" \d", said.program)

    def test_its_options_are_told_and_others_are_refused(self) -> None:
        """Names that fit beside those every format has, what each means, and none chosen where nobody says."""
        said = self.formatter
        for name, meaning in said.options.items():
            assert re.fullmatch(r"[a-z][a-z0-9-]*", name)
            assert name not in ("compression", "platform", "redirect")
            assert meaning
            assert "\n" not in meaning
        assert said.with_options({}) is said
        assert type(said)().chosen == {}
        try:
            said.with_options({"no-such": "1G"})
        except InvalidOption as refusal:
            told = str(refusal)
        else:
            raise AssertionError("an option that there is not is not refused")
        assert all(word in told for word in ("no-such", "1G", *said.options))

    def test_it_is_found_by_its_verb_where_it_is_installed(self) -> None:
        """The entry point is called as the verb is, and nothing is wrong with it."""
        assert type(formats.installed_formatters()[self.formatter.verb]) is type(self.formatter)

    def test_what_it_changes_is_the_same_each_time_and_named_from_the_root(self) -> None:
        for image in self.images:
            changes = self.formatter.changes(image)
            assert changes == self.formatter.changes(image)
            for name in () if changes is None else (*changes.added, *changes.left_out):
                assert name
                assert posixpath.normpath(name) == name
                assert not name.startswith((b"/", b".."))

    def test_the_chunks_are_bytes(self) -> None:
        chunks = list(self.stream(source_image(), self.rootfs()))
        assert {type(chunk) for chunk in chunks} == {bytes}

    def test_the_same_image_gives_the_same_bytes_however_it_is_read(self) -> None:
        for image in self.images:
            assert len({self.output(image, chunk_size=size) for size in (1 << 20, 4096, 511, 1 << 20)}) == 1

    def test_a_stream_that_nobody_reads_opens_no_layer(self) -> None:
        rootfs = self.rootfs()
        _close(self.stream(source_image(), rootfs))
        assert rootfs.opened == 0

    def test_a_stream_that_is_left_early_closes_the_layers(self) -> None:
        for chunks in range(1, 9):
            rootfs = self.rootfs(chunk_size=512)
            stream = self.stream(source_image(), rootfs)
            for _ in islice(stream, chunks):
                pass
            _close(stream)
            assert rootfs.closed == rootfs.opened

    def test_a_layer_that_breaks_breaks_the_stream(self) -> None:
        whole = len(self.output(source_image()))
        rootfs = self.rootfs(breaks=True, chunk_size=1024)
        received = 0
        try:
            for chunk in self.stream(source_image(), rootfs):
                received += len(chunk)
        except BrokenLayerError:
            assert received < whole
            assert rootfs.closed == rootfs.opened
        else:
            raise AssertionError("the stream went on as if nothing had happened")

    def test_what_it_has_no_words_for_is_refused_before_the_first_byte(self) -> None:
        for image in self.refused:
            for ask in (self.formatter.check, self.formatter.size, self.stream):
                rootfs = self.rootfs()
                assert _refuses(ask, image, rootfs), f"{image.reference} on {image.platform} is not refused"
                assert rootfs.opened == 0

    def test_the_bytes_are_those_of_the_revision(self) -> None:
        """A failure here means: raise `revision`, and pin what the new one gives."""
        if self.pinned:
            assert self.pinned[self.formatter.revision] == hashlib.sha256(self.output(source_image())).hexdigest()


class SizedFormatterTests(AnyFormatterTests):
    """What every formatter does that knows the size beforehand."""

    def size(self, image: SourceImage, rootfs: MemoryRootfs) -> int:
        """Return the size that is told."""
        size = self.formatter.size(self.told(image, rootfs), rootfs)
        assert size is not None
        return size

    def test_the_size_is_known_before_the_first_byte_and_exact(self) -> None:
        for image in self.images:
            rootfs = self.rootfs(image)
            size = self.size(image, rootfs)
            assert rootfs.opened == 0
            assert size == len(self.output(image))

    def part(self, image: SourceImage, rootfs: MemoryRootfs, offset: int, length: int) -> Iterator[bytes]:
        """Return that part of the stream."""
        return self.formatter.range_generator(self.told(image, rootfs), rootfs, offset, length)

    def edges(self, image: SourceImage, size: int) -> Sequence[int]:
        """Return where ranges are to begin and end beside chance's choice: here the ends of the whole."""
        return [0, 1, size - 1, size]

    def test_any_range_is_that_part_of_the_whole(self) -> None:
        """Half of the ranges begin or end where something does."""
        chance = random.Random(0)  # noqa: S311 nobody guesses these
        for image in self.images:
            whole = self.output(image)
            size = len(whole)
            edges = [edge for edge in self.edges(image, size) if edge <= size]
            for _ in range(60):
                places = (chance.choice(edges) if chance.random() < 1 / 2 else chance.randint(0, size) for _ in "be")
                begin, end = sorted(places)
                assert b"".join(self.part(image, self.rootfs(image), begin, end - begin)) == whole[begin:end]

    def test_a_range_that_is_not_there_is_refused_before_a_layer_is_opened(self) -> None:
        rootfs = self.rootfs()
        size = self.size(source_image(), rootfs)
        for offset, length in ((0, size + 1), (size, 1), (-1, 1), (1, -1), (size + 1, 0)):
            try:
                self.part(source_image(), rootfs, offset, length)
            except ValueError:
                continue
            raise AssertionError(f"{length} bytes from {offset} are given of {size}")
        assert rootfs.opened == 0

    def test_a_range_that_is_left_early_closes_the_layers(self) -> None:
        size = self.size(source_image(), self.rootfs())
        for end in (size // 2, size):
            for chunks in range(4):
                rootfs = self.rootfs(chunk_size=512)
                part = self.part(source_image(), rootfs, 0, end)
                for _ in islice(part, chunks):
                    pass
                _close(part)
                assert rootfs.closed == rootfs.opened


class ArchiveFormatterTests(SizedFormatterTests):
    """What every formatter does that makes an archive to be read by tar, whatever it is made of."""

    def test_an_independent_reader_reads_it_to_the_end(self) -> None:
        for image in self.images:
            output = self.output(image)
            assert len(output) % 512 == 0
            assert output.endswith(bytes(1024))
            with tarfile.open(fileobj=io.BytesIO(output), mode="r:") as tar:
                members = tar.getmembers()
                assert members
                read = sum(1 for member in members if member.isfile() and tar.extractfile(member))
                assert read == sum(1 for member in members if member.isfile())
                assert not output[tar.offset :].strip(b"\0"), "something stands after the archive's end"

    def test_no_path_comes_twice_and_none_leaves_the_archive(self) -> None:
        for image in self.images:
            with tarfile.open(fileobj=io.BytesIO(self.output(image)), mode="r:") as tar:
                names = tar.getnames()
            normal = [posixpath.normpath(name) for name in names]
            assert len(set(normal)) == len(normal)
            assert not [name for name in normal if name.startswith(("/", ".."))]

    def test_folders_come_before_what_is_in_them(self) -> None:
        with tarfile.open(fileobj=io.BytesIO(self.output(source_image())), mode="r:") as tar:
            seen: set[str] = set()
            for member in tar.getmembers():
                parent = posixpath.dirname(member.name)
                assert not parent or parent in seen
                seen.add(member.name)

    def test_an_empty_root_file_system_is_no_error(self) -> None:
        output = self.output(self.bare, files={})
        assert len(output) == self.size(self.bare, self.rootfs(self.bare, files={}))
        with tarfile.open(fileobj=io.BytesIO(output), mode="r:") as tar:
            tar.getmembers()


class FormatterTests(ArchiveFormatterTests):
    """What every formatter does that makes a tar around the root file system's."""

    formatter: ClassVar[TarImageFormatter]

    def edges(self, image: SourceImage, size: int) -> Sequence[int]:
        """Return the ends of the head and of the root file system too."""
        rootfs = self.rootfs(image)
        head = len(self.formatter.head(image, rootfs))
        return [0, 1, head, head + 1, head + rootfs.size, head + rootfs.size - 1, size - 1, size]

    def test_the_size_of_a_root_file_system_of_terabytes_is_told_as_fast(self) -> None:
        class Large(MemoryRootfs):
            @property
            def size(self) -> int:
                return 5 << 40

        large = Large(path_prefix=self.formatter.path_prefix)
        assert self.formatter.size(source_image(), large) >= large.size
        assert large.opened == 0

    def test_a_range_of_the_root_file_system_reads_no_more_than_it_takes(self) -> None:
        rootfs = self.rootfs()
        begin = len(self.formatter.head(source_image(), rootfs)) + 1000
        assert not self.formatter.needs_all(source_image(), rootfs, begin, 5000)
        list(self.formatter.range_generator(source_image(), rootfs, begin, 5000))
        assert (rootfs.opened, rootfs.ranged) == (1, 5000)


def _refuses(ask: Callable[[SourceImage, MemoryRootfs], object], image: SourceImage, rootfs: MemoryRootfs) -> bool:
    try:
        ask(image, rootfs)
    except Inexpressible as refusal:
        return bool(str(refusal))
    return False


def _close(stream: Iterator[bytes]) -> None:
    assert isinstance(stream, Generator), "the stream cannot be closed, so nobody can tell it that the client is gone"
    stream.close()


def _changed(files: Mapping[str, bytes | None], changes: RootfsChanges) -> dict[str, bytes | None]:
    """Return `files` with the changes, but for what symlinks would do."""
    gone = [name.decode() for name in changes.left_out]
    changed = {name: files[name] for name in files if not any(f"{name}/".startswith(f"{each}/") for each in gone)}
    for name, content in changes.added.items():
        *parents, path = accumulate(name.decode().split("/"), lambda parent, name: f"{parent}/{name}")
        for parent in parents:
            changed.setdefault(parent, None)
        changed.setdefault(path, content)
    return changed


def _tar(files: Iterable[tuple[str, bytes | None]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.mode, info.type = (0o755, tarfile.DIRTYPE) if content is None else (0o644, tarfile.REGTYPE)
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
        # tarfile fills a record; a merged root file system ends with its two blocks.
        end = tar.offset
    return buffer.getvalue()[:end] + bytes(1024)
