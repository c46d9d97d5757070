"""Every built-in format passes the shipped suite; formats are found by entry points, and a broken one is left out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from formats import DuplicateVerb, installed_formatters
from formats.aci import ACIImage
from formats.bundle import RuntimeBundle
from formats.ext4 import Ext4Disk
from formats.formatter import SourceImage
from formats.incus import IncusImage
from formats.installed import GROUP
from formats.ociarchive import OciArchive
from formats.rootfs import RootfsTar
from formats.squashed import SquashedDockerImage
from formats.squashfs import Squashfs
from formats.tarimageformatter import TarImageFormatter
from formats.testing import (
    CONFIG,
    AnyFormatterTests,
    ArchiveFormatterTests,
    FormatterTests,
    MemoryRootfs,
    SizedFormatterTests,
    source_image,
)
from formats.wsl import NoDistribution, WslDistribution
from util.compression import Compression
from util.digest import Digest
from util.oci import Platform
from util.packedlayer import packed


class TestACIImage(FormatterTests):
    formatter = ACIImage()
    pinned: ClassVar = {1: "5be5ba628646553c5cda17605fefd193626fd12c3457c586c34908087588800a"}
    refused = (
        source_image(namespace="Acme"),
        source_image(repository="gr__eet"),
        source_image(repository="greet-"),
        source_image(host="[::1]:5000"),
        source_image(platform=Platform("linux", "riscv64")),
        source_image(platform=Platform("windows", "amd64")),
        source_image(platform=Platform("linux", "amd64", "v3")),
    )


class TestRuntimeBundle(FormatterTests):
    formatter = RuntimeBundle()
    pinned: ClassVar = {1: "5315d2e1718554a615d73d5b95603c41831022ba0245073cfeff1fae75b2152e"}
    images = tuple(image for image in FormatterTests.images if image.config.entrypoint or image.config.cmd)
    refused = (
        source_image({"config": None}),
        source_image({"config": {"Cmd": []}}),
        source_image({"config": {"Cmd": ["true"], "User": "eve"}}),
        source_image({"config": {"Cmd": ["true"], "User": "ada:eve"}}),
        source_image({"config": {"Cmd": ["true"], "WorkingDir": "srv"}}),
        source_image({"config": {"Cmd": ["true"], "Volumes": {"/": {}}}}),
        source_image(platform=Platform("windows", "amd64")),
    )


class TestIncusImage(FormatterTests):
    formatter = IncusImage()
    pinned: ClassVar = {1: "d450a397b6504312f6984248c18d7d17ad686e8f8a8de918479cb080afcb6698"}
    refused = (
        source_image(platform=Platform("linux", "wasm")),
        source_image(platform=Platform("linux", "arm", "v5")),
        source_image(platform=Platform("windows", "amd64")),
    )


class TestWslDistribution(FormatterTests):
    formatter = WslDistribution()
    pinned: ClassVar = {1: "6462017d6c44effba6c68d27d889954b439b4610e839200555e5047b1aa17c6f"}
    images = tuple(image for image in FormatterTests.images if image.platform.architecture == "amd64")
    refused = (
        source_image(platform=Platform("linux", "arm", "v7")),
        source_image(platform=Platform("windows", "amd64")),
    )

    def test_an_empty_root_file_system_is_no_error(self) -> None:
        """It is one here: WSL could not log in."""
        with pytest.raises(NoDistribution, match="root"):
            self.output(self.bare, files={})


class TestSquashedDockerImage(FormatterTests):
    formatter = SquashedDockerImage()
    pinned: ClassVar = {1: "216c99ccbb224b0e6ceafa3486416a505e9ebb50785a1c49cc71fb4197d06d14"}
    refused = (
        source_image(namespace="Acme"),
        source_image(repository="greet//world"),
        source_image(repository="greet-"),
        source_image(repository="r" * 255),
        source_image(host="registry_example.com"),
        source_image(host=""),
        source_image(tag="t" * 122),
        source_image(tag="größer"),
        source_image(tag=""),
    )


class TestOciArchive(ArchiveFormatterTests):
    formatter = OciArchive()
    refused = (
        source_image(namespace="Acme"),
        source_image(repository="greet//world"),
        source_image(host="registry_example.com"),
        source_image(tag="1.0+git"),
        source_image(tag="t" * 129),
    )

    def edges(self, image: SourceImage, size: int) -> Sequence[int]:
        """Return the ends of the documents and of the layer too."""
        layer = self.told(image, self.rootfs(image)).layer
        assert layer is not None
        head = size - 1024 - layer.size - -layer.size % 512
        return [0, 1, head - 1, head, head + 1, head + layer.size - 1, head + layer.size, size - 1, size]


class TestOciArchiveUncompressed(TestOciArchive):
    """Whose bytes do not hang on a compressor's version."""

    pinned: ClassVar = {1: "87f1e153d253114277518851ea1797da59d0a09f2cc0f1752741bd1d8bafcc23"}

    def told(self, image: SourceImage, rootfs: MemoryRootfs) -> SourceImage:
        return replace(image, layer=packed(iter([rootfs.content]), Compression.NONE))


class TestExt4Disk(SizedFormatterTests):
    formatter = Ext4Disk(spare=1 << 20)
    pinned: ClassVar = {1: "ab3aed06fdafa3aaef6bbaa65dbb11ad57a329b11c05c4edfea680a598c501ac"}
    images = (source_image(), source_image(image_id="f" * 64))

    def edges(self, image: SourceImage, size: int) -> Sequence[int]:
        """Return where blocks end, too."""
        blocks = [place for at in range(0, 300, 7) for place in (4096 * at - 1, 4096 * at, 4096 * at + 1)]
        return [*blocks[1:], size - 1, size]

    def test_another_image_is_another_file_system(self) -> None:
        one, other = map(self.output, self.images)
        assert [
            place for place in range(0, len(one), 4096) if one[place : place + 4096] != other[place : place + 4096]
        ] == [0]


class TestSquashfs(AnyFormatterTests):
    formatter = Squashfs()
    images = (source_image(), source_image(image_id="f" * 64))

    def test_the_size_is_told_by_making_it_alone(self) -> None:
        assert self.formatter.size(source_image(), self.rootfs()) is None
        assert self.formatter.needs_all(source_image(), self.rootfs(), 0, 1)
        with pytest.raises(ValueError, match="squashfs is made as a whole"):
            self.formatter.range_generator(source_image(), self.rootfs(), 0, 1)


class TestRootfsTar(FormatterTests):
    formatter = RootfsTar()
    pinned: ClassVar = {1: "ae53cab87dbcb4b04b2fe22a5db269e0279b546689b1519453368cef4384aae7"}

    def test_it_is_the_root_file_system_and_nothing_else(self) -> None:
        assert self.output(source_image()) == MemoryRootfs().content


# --- Which are installed ----------------------------------------------------------------------------------------------


class Floppy(RootfsTar):
    verb = "floppy"


class Misnamed(RootfsTar):
    verb = "something-else"


class Shouting(RootfsTar):
    verb = "LOUD"


class Half(TarImageFormatter):
    verb = "half"


class NoFormat:
    verb = "no-format"


def point(verb: str, name: str) -> EntryPoint:
    return EntryPoint(verb, f"{__name__}:{name}", GROUP)


def test_the_built_in_formats_are_found_like_all_others() -> None:
    found = installed_formatters()
    assert [type(found[verb]) for verb in ("aci", "rootfs", "squash")] == [ACIImage, RootfsTar, SquashedDockerImage]
    assert list(found) == sorted(found)


def test_aci_and_squash_come_in_gzip_as_quay_had_them_and_rootfs_plain() -> None:
    defaults = {verb: formatter.default_compression for verb, formatter in installed_formatters().items()}
    assert [defaults[verb] for verb in ("aci", "squash", "rootfs")] == [
        Compression.GZIP,
        Compression.GZIP,
        Compression.NONE,
    ]


def test_a_format_is_found_by_its_entry_point() -> None:
    assert isinstance(installed_formatters([point("floppy", "Floppy")])["floppy"], Floppy)


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("absent", "Absent"),
        ("half", "Half"),
        ("no-format", "NoFormat"),
        ("misnamed", "Misnamed"),
        ("LOUD", "Shouting"),
    ],
)
def test_a_format_that_cannot_be_used_is_reported_by_name_and_takes_no_other_with_it(
    verb: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        found = installed_formatters([point(verb, name), point("floppy", "Floppy")])
    assert list(found) == ["floppy"]
    assert f"the format {verb} of an unknown package ({__name__}:{name}) cannot be used" in caplog.text


def test_a_format_whose_module_cannot_be_imported_is_reported_by_name(caplog: pytest.LogCaptureFixture) -> None:
    assert installed_formatters([EntryPoint("lost", "no.such.module:Lost", GROUP)]) == {}
    assert "the format lost of an unknown package (no.such.module:Lost) cannot be used" in caplog.text


def test_one_verb_of_two_packages_is_an_error_that_names_both() -> None:
    twice = [point("floppy", "Floppy"), EntryPoint("floppy", "other.package:Floppy", GROUP)]
    with pytest.raises(DuplicateVerb, match=rf"floppy .*{__name__}:Floppy.*other\.package:Floppy"):
        installed_formatters(twice)


def test_one_format_that_is_found_twice_is_one_format() -> None:
    assert list(installed_formatters([point("floppy", "Floppy")] * 2)) == ["floppy"]


# --- The pieces that formats are made of ------------------------------------------------------------------------------


def test_a_reference_is_what_the_image_is_pulled_by() -> None:
    assert source_image(CONFIG).reference == "registry.example.com:8443/acme/greet:1.0"
    assert source_image(tag="sha256:ab").reference == "registry.example.com:8443/acme/greet@sha256:ab"


def test_the_layer_s_digest_is_not_asked_for_before_the_layer_has_ended() -> None:
    rootfs = MemoryRootfs(chunk_size=512)
    stream = SquashedDockerImage().stream_generator(source_image(), rootfs)
    next(stream)
    with pytest.raises(AssertionError, match="before the root file system has ended"):
        _ = rootfs.diff_id
    assert b"".join(stream)
    assert rootfs.diff_id == Digest.of(rootfs.content)
