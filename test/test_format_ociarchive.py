"""The OCI archive: its documents against the image-spec and Docker's reader, its layer against what was announced."""

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from formats.dockerreference import NoDockerReference
from formats.ociarchive import OciArchive
from formats.squashed import squashed_config
from formats.testing import CONFIG, MemoryRootfs, source_image
from util.compression import Compression, decompressed
from util.digest import Digest
from util.oci import Platform
from util.packedlayer import LayerDiffers, packed

LAYER = "application/vnd.oci.image.layer.v1.tar"


class Archive:
    """An archive, read by Python's tarfile. `image` is what it was made of."""

    def __init__(
        self, config: Mapping[str, Any] = CONFIG, compression: Compression = Compression.GZIP, **changes: Any
    ) -> None:
        self.rootfs = MemoryRootfs()
        self.layer = packed(iter([self.rootfs.content]), compression)
        self.image = source_image(config, layer=self.layer, **changes)
        self.output = b"".join(OciArchive().stream(self.image, self.rootfs, folder="/nowhere"))
        with tarfile.open(fileobj=io.BytesIO(self.output)) as tar:
            self.members = tar.getmembers()
            self.files = {each.name: tar.extractfile(each).read() for each in self.members if each.isfile()}  # type: ignore[union-attr]
        self.index = json.loads(self.files["index.json"])
        [self.described] = self.index["manifests"]
        self.manifest = json.loads(self.blob(self.described))
        self.config = json.loads(self.blob(self.manifest["config"]))

    def blob(self, descriptor: Mapping[str, Any]) -> bytes:
        """Return what a descriptor leads to, after looking that it says the truth."""
        algorithm, _, name = descriptor["digest"].partition(":")
        content = self.files[f"blobs/{algorithm}/{name}"]
        assert (name, descriptor["size"]) == (hashlib.sha256(content).hexdigest(), len(content))
        return content


# --- Documents --------------------------------------------------------------------------------------------------------


def test_it_is_an_image_layout_with_one_image_in_it() -> None:
    archive = Archive()
    assert json.loads(archive.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert {key: archive.index[key] for key in ("schemaVersion", "mediaType")} == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
    }
    assert archive.described["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert archive.described["platform"] == {"architecture": "amd64", "os": "linux"}
    assert (archive.manifest["schemaVersion"], archive.manifest["mediaType"]) == (2, archive.described["mediaType"])
    assert archive.manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert len(archive.files) == 6


@pytest.mark.parametrize(
    ("compression", "media_type"),
    [(Compression.GZIP, f"{LAYER}+gzip"), (Compression.ZSTD, f"{LAYER}+zstd"), (Compression.NONE, LAYER)],
)
def test_the_layer_is_the_root_file_system_in_its_compression(compression: Compression, media_type: str) -> None:
    archive = Archive(compression=compression)
    [layer] = archive.manifest["layers"]
    assert layer["mediaType"] == media_type
    assert b"".join(decompressed(io.BytesIO(archive.blob(layer)))) == archive.rootfs.content
    assert archive.config["rootfs"] == {
        "type": "layers",
        "diff_ids": [f"sha256:{hashlib.sha256(archive.rootfs.content).hexdigest()}"],
    }


def test_the_configuration_is_that_of_the_squashed_archive() -> None:
    archive = Archive()
    config = archive.blob(archive.manifest["config"])
    assert config == squashed_config(archive.image, Digest.of(archive.rootfs.content))
    assert json.loads(config)["config"] == CONFIG["config"]


def test_it_names_the_image_as_the_registry_does_to_every_reader() -> None:
    archive = Archive()
    assert archive.described["annotations"] == {
        "org.opencontainers.image.ref.name": "1.0",
        "io.containerd.image.name": "registry.example.com:8443/acme/greet:1.0",
    }
    assert json.loads(archive.files["manifest.json"]) == [
        {
            "Config": "blobs/sha256/" + archive.manifest["config"]["digest"].removeprefix("sha256:"),
            "RepoTags": ["registry.example.com:8443/acme/greet:1.0"],
            "Layers": ["blobs/sha256/" + archive.manifest["layers"][0]["digest"].removeprefix("sha256:")],
        }
    ]


def test_the_layer_comes_last_and_folders_before_what_is_in_them() -> None:
    archive = Archive()
    names = [each.name for each in archive.members]
    assert names[:5] == ["oci-layout", "index.json", "manifest.json", "blobs", "blobs/sha256"]
    documents = (archive.described, archive.manifest["config"], archive.manifest["layers"][0])
    assert [f"sha256:{name.rpartition('/')[2]}" for name in names[5:]] == [each["digest"] for each in documents]
    assert {each.mtime for each in archive.members} == {0}
    assert {(each.uid, each.gid, each.uname, each.gname) for each in archive.members} == {(0, 0, "", "")}


def test_the_layer_s_header_holds_however_large_it_is() -> None:
    layer = replace(packed(iter([b""]), Compression.GZIP), size=20 << 30)
    image = source_image(layer=layer)
    size = OciArchive().size(image, MemoryRootfs())
    assert size is not None
    assert size > 20 << 30
    head = b"".join(OciArchive().range_generator(image, MemoryRootfs(), 0, size - layer.size - 1024))
    with tarfile.open(fileobj=io.BytesIO(head + bytes(1024))) as tar:
        assert [tar.next() for _ in range(8)][-1].size == 20 << 30  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        (Platform("linux", "arm", "v7"), {"os": "linux", "architecture": "arm", "variant": "v7"}),
        (
            Platform("windows", "amd64", os_version="10.0.1"),
            {"os": "windows", "architecture": "amd64", "os.version": "10.0.1"},
        ),
    ],
)
def test_the_index_tells_the_platform(platform: Platform, told: Mapping[str, str]) -> None:
    assert Archive(platform=platform).described["platform"] == told


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_one_that_was_asked_for_by_its_digest_is_named_after_it(algorithm: str) -> None:
    digest = Digest.of(b"", algorithm)
    archive = Archive(tag=str(digest))
    assert archive.described["annotations"]["org.opencontainers.image.ref.name"] == f"{algorithm}-{digest.hex[:64]}"


def test_what_docker_would_not_call_an_image_is_refused_by_name() -> None:
    for image, named in (
        (source_image(namespace="Acme"), "Acme/greet"),
        (source_image(tag="1.0+git"), "1.0+git"),
        (source_image(tag="t" * 129), "t" * 129),
    ):
        with pytest.raises(NoDockerReference, match=re.escape(named)):
            OciArchive().check(image, MemoryRootfs())


def test_a_tag_as_long_as_may_be_is_expressed() -> None:
    assert Archive(tag="t" * 128).described["annotations"]["org.opencontainers.image.ref.name"] == "t" * 128


# --- What was announced -----------------------------------------------------------------------------------------------


def test_its_size_is_not_known_before_its_layer_is() -> None:
    image, rootfs = source_image(), MemoryRootfs()
    assert OciArchive().size(image, rootfs) is None
    for ask in (
        lambda: OciArchive().stream(image, rootfs, folder="/nowhere"),
        lambda: OciArchive().needs_all(image, rootfs, 0, 1),
        lambda: OciArchive().range_generator(image, rootfs, 0, 1),
    ):
        with pytest.raises(
            ValueError, match=r"^the layer of registry\.example\.com:8443/acme/greet:1\.0 is not known$"
        ):
            ask()
    assert rootfs.opened == 0


@pytest.mark.parametrize("compression", list(Compression))
def test_a_layer_that_is_another_is_cut(compression: Compression) -> None:
    for changes in ({"digest": Digest.of(b"other")}, {"size": 1}, {"size": 1 << 20}):
        rootfs = MemoryRootfs()
        layer = replace(packed(iter([rootfs.content]), compression), **changes)
        size = OciArchive().size(source_image(layer=layer), rootfs)
        received = bytearray()
        stream = OciArchive().stream(source_image(layer=layer), rootfs, folder="/nowhere")
        with pytest.raises(LayerDiffers):
            received.extend(chain.from_iterable(stream))
        assert size is not None
        assert len(received) < size
        assert rootfs.closed == rootfs.opened


def test_a_part_of_a_layer_that_is_another_is_cut_too() -> None:
    rootfs = MemoryRootfs()
    layer = replace(packed(iter([rootfs.content]), Compression.GZIP), digest=Digest.of(b"other"))
    image = source_image(layer=layer)
    size = OciArchive().size(image, rootfs)
    assert size is not None
    with pytest.raises(LayerDiffers):
        list(OciArchive().range_generator(image, rootfs, 5000, size - 5000))
    plain = source_image(layer=replace(layer, compression=Compression.NONE))
    with pytest.raises(LayerDiffers, match=f"and has {rootfs.size}"):
        OciArchive().range_generator(plain, rootfs, 0, 1)


def test_the_documents_alone_and_the_end_alone_cost_no_layer() -> None:
    rootfs = MemoryRootfs()
    layer = packed(iter([rootfs.content]), Compression.GZIP)
    image, oci = source_image(layer=layer), OciArchive()
    size = oci.size(image, rootfs)
    assert size is not None
    end = 1024 + -layer.size % 512
    head = size - end - layer.size
    for offset, length in ((0, head), (size - end, end), (head, 0)):
        assert not oci.needs_all(image, rootfs, offset, length)
        assert len(b"".join(oci.range_generator(image, rootfs, offset, length))) == length
    assert rootfs.opened == 0
    for offset, length in ((0, head + 1), (head, 1), (head + layer.size - 1, 2)):
        assert oci.needs_all(image, rootfs, offset, length)


def test_a_part_of_a_layer_that_is_not_compressed_reads_no_more_than_it_takes() -> None:
    rootfs = MemoryRootfs()
    image = source_image(layer=packed(iter([rootfs.content]), Compression.NONE))
    assert not OciArchive().needs_all(image, rootfs, 20_000, 5000)
    list(OciArchive().range_generator(image, rootfs, 20_000, 5000))
    assert (rootfs.opened, rootfs.ranged) == (1, 5000)


def test_gzip_itself_unwraps_the_layer() -> None:
    archive = Archive()
    assert gzip.decompress(archive.blob(archive.manifest["layers"][0])) == archive.rootfs.content
