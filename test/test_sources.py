"""Where images come from: which image a source means, and archives that mean harm."""

import errno
import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from data import sources
from data.sources import (
    BlobNotInSource,
    ImageNotInSource,
    InvalidSource,
    MalformedSource,
    SourceNotFound,
    SourceTooLarge,
    open_source,
)
from test.dockersave import config_of, listing, member, saved, symlink, write
from test.images import INDEX, MANIFEST, Image, Layer, Layout
from test.layers import file, pax_block, pax_record, zstd_frame
from util.digest import Digest
from util.oci import (
    CONFIG_V2,
    LAYER_V2,
    LAYER_V2_GZIP,
    LAYER_V2_ZSTD,
    MANIFEST_V2,
    Descriptor,
    MalformedConfig,
    MalformedManifest,
)

ONE = Image([Layer([file(b"one", b"1" * 5000)]), Layer([file(b"more")], wrapping="none")])
TWO = Image([Layer([file(b"two")], wrapping="zstd")])


def root_of(source: str) -> Descriptor:
    with open_source(source) as opened:
        return opened.root


def content(source: str, digest: Digest) -> bytes:
    with open_source(source) as opened:
        stream = opened.open(digest)
        try:
            return b"".join(iter(lambda: stream.read(1000), b""))
        finally:
            stream.close()


def digest_of(descriptor: Any) -> Digest:
    return Digest.parse(descriptor["digest"])


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


# --- What a source is called ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "oci", "oci:", "docker://alpine", "registry:x", "oci-dir:x", ":x"])
def test_a_text_that_names_no_kind_of_source_is_refused_with_those_there_are(source: str) -> None:
    with pytest.raises(InvalidSource, match="oci:DIR, oci-archive:FILE or docker-archive:FILE"):
        root_of(source)


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_a_source_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"/absent cannot be read: No such file"):
        root_of(f"{kind}:{tmp_path}/absent:latest")


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceNotFound, match="cannot be read: Not a directory"):
        root_of(f"oci:{tmp_path}/file")
    with pytest.raises(SourceNotFound, match="cannot be read: Is a directory"):
        root_of(f"oci-archive:{tmp_path}")


def test_a_path_may_have_colons(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    layout = Layout(tmp_path / "a:b" / "c:1")
    source = layout.tag("edge", layout.image(ONE))
    assert root_of(source) == root_of(source.removesuffix(":edge"))


# --- OCI layouts ------------------------------------------------------------------------------------------------------


def test_a_layout_gives_its_manifest_and_its_blobs(layout: Layout) -> None:
    image = layout.image(ONE)
    source = layout.tag("1.0", image)
    assert root_of(source) == Descriptor(MANIFEST, digest_of(image), image["size"])
    for layer in ONE.layers:
        assert content(source, Digest.of(layer.blob)) == layer.blob


@pytest.mark.parametrize("wrapped", [bytes, gzip.compress, zstd_frame])
def test_an_archive_of_a_layout_is_the_same(layout: Layout, tmp_path: Path, wrapped: Any) -> None:
    image = layout.image(ONE)
    layout.tag("1.0", image)
    archive = layout.archive(tmp_path / "plain.tar")
    (tmp_path / "x.tar").write_bytes(wrapped((tmp_path / "plain.tar").read_bytes()))
    source = archive.replace("plain.tar", "x.tar")
    assert root_of(source) == root_of(f"oci:{layout.folder}")
    assert root_of(source + ":1.0") == root_of(source)
    assert content(source, Digest.of(ONE.layers[0].blob)) == ONE.layers[0].blob


def test_a_reference_chooses_and_is_needed_where_there_are_several(layout: Layout) -> None:
    one, two = layout.image(ONE), layout.image(TWO)
    layout.tag("1.0", one)
    layout.tag("2.0", two)
    source = f"oci:{layout.folder}"
    assert root_of(source + ":2.0").digest == digest_of(two)
    assert root_of(f"{source}:{one['digest']}").digest == digest_of(one)
    with pytest.raises(ImageNotInSource, match=r"has 2 images, and none was named; there are: 1\.0, 2\.0"):
        root_of(source)
    with pytest.raises(ImageNotInSource, match=r"has 0 images called '3\.0'; there are: 1\.0, 2\.0") as caught:
        root_of(source + ":3.0")
    assert caught.value.existing == ("1.0", "2.0")


def test_two_names_of_one_image_are_one_image(layout: Layout) -> None:
    one = layout.image(ONE)
    layout.tag("1.0", one)
    layout.tag("latest", one)
    assert root_of(f"oci:{layout.folder}").digest == digest_of(one)


def test_the_name_that_containerd_and_docker_give_chooses_too(layout: Layout) -> None:
    annotations = {"io.containerd.image.name": "docker.io/acme/app:1.0", "org.opencontainers.image.ref.name": "1.0"}
    index = {"schemaVersion": 2, "manifests": [{**layout.image(ONE), "annotations": annotations}]}
    (layout.folder / "index.json").write_text(json.dumps(index))
    assert root_of(f"oci:{layout.folder}:docker.io/acme/app:1.0") == root_of(f"oci:{layout.folder}:1.0")


def test_an_index_in_the_layout_is_the_image(layout: Layout) -> None:
    index = layout.index(ONE, TWO)
    assert root_of(layout.tag("1.0", index)) == Descriptor(INDEX, digest_of(index), index["size"])


@pytest.mark.parametrize("ref", [None, "1.0"])
def test_images_for_several_platforms_under_one_name_are_one_image(layout: Layout, ref: str | None) -> None:
    images = [layout.image(ONE), layout.image(Image(TWO.layers, platform="linux/arm64"))]
    annotations = {"annotations": {"org.opencontainers.image.ref.name": ref}} if ref else {}
    content_ = json.dumps({"schemaVersion": 2, "manifests": [{**image, **annotations} for image in images]}).encode()
    (layout.folder / "index.json").write_bytes(content_)
    source = f"oci:{layout.folder}" + (f":{ref}" if ref else "")
    root = root_of(source)
    assert root == Descriptor(INDEX, Digest.of(content_), len(content_))
    assert content(source, root.digest) == content_
    assert (
        content(source, digest_of(images[1]))
        == (layout.folder / "blobs/sha256" / digest_of(images[1]).hex).read_bytes()
    )


def test_images_for_one_platform_are_several(layout: Layout) -> None:
    images = [layout.image(ONE), layout.image(TWO)]
    (layout.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": images}))
    with pytest.raises(ImageNotInSource, match="has 2 images, and none was named"):
        root_of(f"oci:{layout.folder}")


def test_a_layout_of_nothing_has_no_image(layout: Layout) -> None:
    (layout.folder / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    with pytest.raises(ImageNotInSource, match="has 0 images, and none was named; there are: none"):
        root_of(f"oci:{layout.folder}")


@pytest.mark.parametrize(
    ("name", "written", "fact"),
    [
        ("oci-layout", None, "is no OCI layout: oci-layout is missing"),
        ("index.json", None, "is no OCI layout: index.json is missing"),
        ("oci-layout", '{"imageLayoutVersion": "2.0.0"}', "version '2.0.0'; 1.0.0 is known"),
    ],
)
def test_a_folder_that_is_no_layout_is_told(layout: Layout, name: str, written: str | None, fact: str) -> None:
    source = layout.tag("1.0", layout.image(ONE))
    (layout.folder / name).unlink()
    if written is not None:
        (layout.folder / name).write_text(written)
    with pytest.raises(MalformedSource, match=fact):
        root_of(source)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", '{"manifests": 1}', '{"manifests": [{"digest": "sha256:x", "size": 1}]}', '{"manifests": [{}]}'],
)
def test_an_index_that_is_none_names_the_field(layout: Layout, index: str) -> None:
    (layout.folder / "index.json").write_text(index)
    with pytest.raises(MalformedManifest, match=r"the index\.json is malformed"):
        root_of(f"oci:{layout.folder}")


def test_a_blob_that_the_source_does_not_have_is_named(layout: Layout) -> None:
    source = layout.tag("1.0", layout.image(ONE))
    with open_source(source) as opened, pytest.raises(BlobNotInSource, match=str(Digest.of(b"absent"))):
        opened.open(Digest.of(b"absent"))


def test_a_blob_that_may_not_be_read_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    source, blob = layout.tag("1.0", layout.image(ONE)), Digest.of(ONE.layers[0].blob)

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with open_source(source) as opened:
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(SourceNotFound, match=f"{blob.hex} cannot be read: Permission denied"):
            opened.open(blob)


def test_an_error_of_who_reads_a_source_stays_what_it_is(layout: Layout) -> None:
    source = layout.tag("1.0", layout.image(ONE))
    with pytest.raises(FileNotFoundError, match="elsewhere"), open_source(source):
        raise FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")


# --- docker save ------------------------------------------------------------------------------------------------------


def test_an_archive_of_docker_save_becomes_a_schema_2_manifest(tmp_path: Path) -> None:
    image = Image([*ONE.layers, *TWO.layers])
    source = saved(tmp_path / "a.tar", {"acme/app:1.0": image})
    root = root_of(source)
    manifest = json.loads(content(source, root.digest))
    config = config_of(image)
    assert root.media_type == MANIFEST_V2
    assert manifest == {
        "schemaVersion": 2,
        "mediaType": MANIFEST_V2,
        "config": {"mediaType": CONFIG_V2, "size": len(config), "digest": str(Digest.of(config))},
        "layers": [
            {"mediaType": kind, "size": len(layer.blob), "digest": str(Digest.of(layer.blob))}
            for kind, layer in zip((LAYER_V2_GZIP, LAYER_V2, LAYER_V2_ZSTD), image.layers, strict=True)
        ],
    }
    assert content(source, Digest.of(config)) == config
    for layer in image.layers:
        assert content(source, Digest.of(layer.blob)) == layer.blob


def test_the_manifest_depends_on_the_image_and_not_on_the_archive(tmp_path: Path) -> None:
    first = saved(tmp_path / "a.tar", {"acme/app:1.0": ONE})
    second = saved(tmp_path / "b.tar", {"other:2": TWO, "one:1": ONE}) + ":one:1"
    assert root_of(first) == root_of(second)


def test_layers_of_old_archives_that_are_links_to_each_other_are_followed(tmp_path: Path) -> None:
    layer = ONE.layers[0]
    image = Image([layer, layer, layer])
    source = write(
        tmp_path / "a.tar",
        member("one/layer.tar", layer.blob),
        symlink("two/layer.tar", "../one/layer.tar"),
        member("three/layer.tar", kind=tarfile.LNKTYPE, link="one/layer.tar"),
        member("config.json", config_of(image)),
        listing({"Config": "config.json", "Layers": [f"{name}/layer.tar" for name in ("one", "two", "three")]}),
    )
    manifest = json.loads(content(source, root_of(source).digest))
    assert [each["digest"] for each in manifest["layers"]] == [str(Digest.of(layer.blob))] * 3


def test_a_member_that_comes_twice_counts_as_the_last_time(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.tar",
        member("./config.json", b"{}"),
        member("config.json", config_of(TWO)),
        member("x", TWO.layers[0].blob),
        listing({"Config": "config.json", "Layers": ["x"]}),
    )
    assert content(source, Digest.of(config_of(TWO))) == config_of(TWO)


@pytest.mark.parametrize(
    ("ref", "chosen"),
    [
        ("acme/app:1.0", ONE),
        ("docker.io/acme/app:1.0", ONE),
        ("busybox", TWO),
        ("busybox:latest", TWO),
        ("docker.io/library/busybox:latest", TWO),
        ("@0", ONE),
        ("@1", TWO),
    ],
)
def test_a_name_chooses_among_the_images_of_an_archive(tmp_path: Path, ref: str, chosen: Image) -> None:
    source = saved(tmp_path / "a.tar", {"acme/app:1.0": ONE, "busybox:latest": TWO})
    manifest = json.loads(content(f"{source}:{ref}", root_of(f"{source}:{ref}").digest))
    assert manifest["config"]["digest"] == str(Digest.of(config_of(chosen)))


def test_a_name_that_an_archive_does_not_have_is_told_with_those_it_has(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.tar", {"acme/app:1.0": ONE, "": TWO})
    with pytest.raises(ImageNotInSource, match=r"has 2 images and none was named; there are: acme/app:1\.0, @1"):
        root_of(source)
    with pytest.raises(ImageNotInSource, match=r"has 0 images called 'acme/app:2\.0'"):
        root_of(source + ":acme/app:2.0")


@pytest.mark.parametrize(
    ("entry", "error", "fact"),
    [
        ({"Layers": []}, MalformedManifest, "Config is missing"),
        ({"Config": "absent.json", "Layers": []}, BlobNotInSource, r"does not have the configuration absent\.json"),
        ({"Config": "config.json", "Layers": ["absent"]}, BlobNotInSource, "does not have the layer absent"),
        ({"Config": "config.json", "Layers": []}, MalformedConfig, "diff_ids has 1 entries, and the manifest 0 layers"),
        ({"Config": "config.json", "Layers": "x"}, MalformedManifest, r"Layers should be an array"),
        ({"Config": "../config.json", "Layers": ["x"]}, MalformedSource, "leads out of it"),
        ({"Config": "/config.json", "Layers": ["x"]}, MalformedSource, "leads out of it"),
        ({"Config": "config.json", "Layers": ["../../etc/passwd"]}, MalformedSource, "leads out of it"),
        ({"Config": "config.json", "Layers": ["folder"]}, MalformedSource, "folder is no file"),
        ({"Config": "config.json", "Layers": ["loop"]}, MalformedSource, "loop is a link without an end"),
    ],
)
def test_an_archive_that_does_not_fit_together_is_told(
    tmp_path: Path, entry: dict[str, Any], error: type[Exception], fact: str
) -> None:
    source = write(
        tmp_path / "a.tar",
        member("config.json", config_of(TWO)),
        member("folder", kind=tarfile.DIRTYPE),
        symlink("loop", "./loop"),
        listing(entry),
    )
    with pytest.raises(error, match=fact):
        root_of(source)


def test_an_archive_without_a_manifest_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tar", member("repositories", b"{}"))
    with pytest.raises(MalformedSource, match=r"no archive of `docker save`: manifest\.json is missing"):
        root_of(source)


# --- What means harm --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm",
    [
        member("../evil", b"x"),
        member("a/../../evil", b"x"),
        member("/etc/passwd", b"x"),
        member("..", kind=tarfile.DIRTYPE),
        symlink("link", "../../etc/passwd"),
        symlink("link", "/etc/passwd"),
        symlink("folder/link", "../../evil"),
        member("link", kind=tarfile.LNKTYPE, link="../evil"),
    ],
    ids=lambda harm: f"{harm[0].name} {harm[0].linkname}",
)
@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_a_member_that_leads_out_of_the_archive_is_refused(
    tmp_path: Path, kind: str, harm: tuple[tarfile.TarInfo, bytes]
) -> None:
    source = write(tmp_path / "a.tar", harm, listing()).replace("docker-archive", kind)
    with pytest.raises(MalformedSource, match=f"leads out of it: {harm[0].name!r}"):
        root_of(source)


def test_a_link_that_leads_out_of_a_layout_is_refused(layout: Layout, tmp_path: Path) -> None:
    source = layout.tag("1.0", layout.image(ONE))
    secret = b"a secret"
    (tmp_path / "secret").write_bytes(secret)
    os.symlink(tmp_path / "secret", layout.folder / "blobs" / "sha256" / hashlib.sha256(secret).hexdigest())
    with open_source(source) as opened, pytest.raises(MalformedSource, match="is a link that leads out of"):
        opened.open(Digest.of(secret))


def test_a_pipe_in_a_layout_is_not_waited_for(layout: Layout) -> None:
    source = layout.tag("1.0", layout.image(ONE))
    os.mkfifo(layout.folder / "blobs" / "sha256" / Digest.of(b"x").hex)
    with open_source(source) as opened, pytest.raises(MalformedSource, match="is no file"):
        opened.open(Digest.of(b"x"))


def test_a_pipe_is_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    keep = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        with pytest.raises(MalformedSource, match="is no file"):
            root_of(f"oci-archive:{tmp_path}/pipe")
    finally:
        os.close(keep)


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_huge_document_is_refused_unread(tmp_path: Path, name: str) -> None:
    members = {
        "config.json": member("config.json", config_of(TWO)),
        "x": member("x", TWO.layers[0].blob),
        "manifest.json": listing({"Config": "config.json", "Layers": ["x"]}),
    }
    members[name] = member(name, b" " * (64 << 20))
    source = write(tmp_path / "a.tar", *members.values())
    del members
    tracemalloc.start()
    try:
        with pytest.raises(SourceTooLarge, match=f"{name} has more than 4194304 bytes"):
            root_of(source)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_extension_header_is_refused_unread(tmp_path: Path) -> None:
    record = pax_record(b"comment", b"x" * (64 << 20))
    (tmp_path / "a.tar").write_bytes(pax_block(record) + bytes(1024))
    with pytest.raises(MalformedSource, match=r"a header of \d+ bytes; at most 4194304 are accepted"):
        root_of(f"docker-archive:{tmp_path}/a.tar")


def test_an_archive_of_too_many_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_MEMBERS", 10)
    source = write(tmp_path / "a.tar", *(member(f"{at}") for at in range(11)))
    with pytest.raises(SourceTooLarge, match="has more than 10 members"):
        root_of(source)


def test_an_archive_that_expands_to_too_much_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.tar", {"x:1": ONE})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with (
        pytest.raises(SourceTooLarge, match="expands to more than 5000 bytes"),
        open_source(f"docker-archive:{tmp_path}/a.tar.gz", max_size=5000),
    ):
        pass


@pytest.mark.parametrize("broken", [b"", b"no tar at all" * 100, bytes(100)])
def test_what_is_no_archive_is_told(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(broken)
    with pytest.raises(MalformedSource):
        root_of(f"docker-archive:{tmp_path}/a.tar")


def test_an_archive_that_was_cut_is_told(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.tar",
        member("config.json", config_of(TWO)),
        listing({"Config": "config.json", "Layers": ["x"]}),
        member("x", os.urandom(50_000)),
    )
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"x" + bytes(99)) + 20_000])
    with pytest.raises(MalformedSource, match=r"cut short|no sound tar"):
        root_of(source)


def test_an_archive_that_is_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    large = Image([Layer([file(b"large", os.urandom(4 << 20))], wrapping="none")])
    source = saved(tmp_path / "a.tar", {"x:1": large})
    digest = Digest.of(large.layers[0].blob)
    with open_source(source) as opened:
        stream = opened.open(digest)
        stream.read(1000)
        os.truncate(tmp_path / "a.tar", 1 << 20)
        with pytest.raises(MalformedSource, match="is cut short"):
            list(iter(lambda: stream.read(1 << 20), b""))
        stream.close()


def test_a_blob_that_an_archive_of_docker_save_does_not_have_is_named(tmp_path: Path) -> None:
    with (
        open_source(saved(tmp_path / "a.tar", {"x:1": ONE})) as opened,
        pytest.raises(BlobNotInSource, match=str(Digest.of(b"absent"))),
    ):
        opened.open(Digest.of(b"absent"))


def test_a_sparse_member_is_no_file(tmp_path: Path) -> None:
    header = tarfile.TarInfo("manifest.json")
    header.pax_headers = {"GNU.sparse.map": "0,5", "GNU.sparse.size": "1000000000000"}
    header.size = 5
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(header, io.BytesIO(b"[{}] "))
    with pytest.raises(MalformedSource, match="is no file"):
        root_of(f"docker-archive:{tmp_path}/a.tar")


def test_layers_are_not_held_in_memory(tmp_path: Path) -> None:
    large = Image([Layer([file(b"large", bytes(64 << 20))], wrapping="none")])
    source = saved(tmp_path / "a.tar", {"x:1": large})
    digest = Digest.of(large.layers[0].blob)
    tracemalloc.start()
    try:
        with open_source(source) as opened:
            stream = opened.open(digest)
            size = sum(len(piece) for piece in iter(lambda: stream.read(1 << 20), b""))
            stream.close()
        assert size > 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
