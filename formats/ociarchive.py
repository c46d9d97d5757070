"""An OCI image layout of one layer as an archive, which is one for `docker load` too.

The law: the documents come first, and the layer last, because its digest is known before it is packed (`image.layer`):
who reads it as a stream knows at each byte what it is. The layer is what was announced, or the stream breaks. Manifest
and configuration are those that the tag `TAG.squash` has in the registry, to the byte, so their digests are the same.

OCI image-spec, image-layout.md; `manifest.json` is Docker's, which names what lies in the layout.
"""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from formats.dockerreference import docker_name, docker_tag
from formats.formatter import Formatter, Rootfs, SourceImage
from formats.squashed import squashed_config
from formats.tarimageformatter import TarImageFormatter, part_of
from util.compression import Compression
from util.digest import Digest
from util.oci import CONFIG_OCI, INDEX_OCI, LAYER_OCI, LAYER_OCI_GZIP, LAYER_OCI_ZSTD, MANIFEST_OCI
from util.packedlayer import PackedLayer, announced
from util.tarheader import END_OF_ARCHIVE

_LAYERS = {Compression.NONE: LAYER_OCI, Compression.GZIP: LAYER_OCI_GZIP, Compression.ZSTD: LAYER_OCI_ZSTD}


class OciArchive(Formatter):
    """`oci`: the image with all its layers in one, under the name that it has in the registry."""

    verb: ClassVar[str] = "oci"
    revision: ClassVar[int] = 1
    media_type: ClassVar[str] = "application/x-tar"
    file_extension: ClassVar[str] = ".oci.tar"
    summary: ClassVar[str] = "the image squashed into one layer, as an OCI image layout that docker and podman load too"
    usage: ClassVar[str] = "curl -fLo image.oci.tar {url} && skopeo copy oci-archive:image.oci.tar oci:FOLDER:TAG"
    default_compression: ClassVar[Compression] = Compression.GZIP
    packs: ClassVar[bool] = True

    def check(self, image: SourceImage, rootfs: Rootfs) -> None:
        """Raise NoDockerReference where the archive would be refused for the image's name."""
        docker_name(image)
        docker_tag(image)

    def size(self, image: SourceImage, rootfs: Rootfs) -> int | None:
        """Return the exact length of the stream in bytes, None where the layer is not known yet."""
        self.check(image, rootfs)
        if image.layer is None:
            return None
        return len(_head(image, image.layer)) + image.layer.size + len(_tail(image.layer))

    def stream(self, image: SourceImage, rootfs: Rootfs, *, folder: str) -> Iterator[bytes]:
        """Return the stream, which needs no folder. Raises ValueError where the layer is not known.

        The iteration raises LayerDiffers, before its end, where the layer is not what it was said to be.
        """
        self.check(image, rootfs)
        layer = _known(image)
        return _stream(_head(image, layer), layer, rootfs)

    def needs_all(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> bool:
        """Tell whether bytes of a layer are asked for that is packed as a whole."""
        layer = _known(image)
        begin = len(_head(image, layer))
        return layer.compression is not Compression.NONE and offset < begin + layer.size and offset + length > begin

    def range_generator(self, image: SourceImage, rootfs: Rootfs, offset: int, length: int) -> Iterator[bytes]:
        """Return `length` bytes of the stream from `offset`, as the contract has it. Raises as `stream` does."""
        size, layer = self.size(image, rootfs), _known(image)
        if size is None or offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"no range of {size} bytes: offset {offset}, length {length}")
        layer.check_tar(rootfs.size)
        all_of_it = self.needs_all(image, rootfs, offset, length)
        return _range(_head(image, layer), layer, rootfs, offset, offset + length, packs=all_of_it)


def oci_manifest(config: bytes, layer: PackedLayer) -> bytes:
    """Return the manifest of an image with `config` and one layer; the same for the same, to the byte."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_OCI,
            "config": _descriptor(CONFIG_OCI, Digest.of(config), len(config)),
            "layers": [_descriptor(_LAYERS[layer.compression], layer.digest, layer.size)],
        }
    )


def _known(image: SourceImage) -> PackedLayer:
    if image.layer is None:
        raise ValueError(f"the layer of {image.reference} is not known")
    return image.layer


def _head(image: SourceImage, layer: PackedLayer) -> bytes:
    """Return what stands before the layer's bytes, its own header at last."""
    file, folder = TarImageFormatter.tar_file, TarImageFormatter.tar_folder
    config = squashed_config(image, layer.diff_id)
    manifest = oci_manifest(config, layer)
    name, tag = docker_name(image), docker_tag(image)
    platform = {
        "architecture": image.platform.architecture,
        "os": image.platform.os,
        "os.version": image.platform.os_version,
        "variant": image.platform.variant,
    }
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX_OCI,
        "manifests": [
            {
                **_descriptor(MANIFEST_OCI, Digest.of(manifest), len(manifest)),
                "platform": {key: value for key, value in platform.items() if value is not None},
                "annotations": {
                    "io.containerd.image.name": f"{name}:{tag}",
                    "org.opencontainers.image.ref.name": tag,
                },
            }
        ],
    }
    docker = [
        {
            "Config": _path(Digest.of(config)),
            "RepoTags": [f"{name}:{tag}"],
            "Layers": [_path(layer.digest)],
        }
    ]
    return b"".join(
        (
            file("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
            file("index.json", _json(index)),
            file("manifest.json", _json(docker)),
            folder("blobs"),
            folder("blobs/sha256"),
            file(_path(Digest.of(manifest)), manifest),
            file(_path(Digest.of(config)), config),
            TarImageFormatter.tar_file_header(_path(layer.digest), layer.size),
        )
    )


def _tail(layer: PackedLayer) -> bytes:
    return TarImageFormatter.tar_file_padding(layer.size) + END_OF_ARCHIVE


def _stream(head: bytes, layer: PackedLayer, rootfs: Rootfs) -> Iterator[bytes]:
    yield head
    # What it unwraps to need not be hashed: what it is packed as is.
    yield from announced(rootfs.get_range(0, rootfs.size), layer)
    yield _tail(layer)


def _range(head: bytes, layer: PackedLayer, rootfs: Rootfs, begin: int, end: int, *, packs: bool) -> Iterator[bytes]:
    if head[begin:end]:
        yield head[begin:end]
    first, last = max(begin - len(head), 0), min(max(end - len(head), 0), layer.size)
    if packs:
        yield from part_of(announced(rootfs.get_range(0, rootfs.size), layer), first, last)
    elif first < last:
        yield from rootfs.get_range(first, last - first)
    before = len(head) + layer.size
    if end > before:
        yield _tail(layer)[max(begin - before, 0) : end - before]


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
