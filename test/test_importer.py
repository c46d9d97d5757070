"""The import from OCI layouts and from `docker save`, into SQLite and into PostgreSQL."""

import errno
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from data import importer, registryrows, sources
from data.database import Engine, create_tables, writing
from data.importer import ImageTooLarge, Schema1NotImported, UnusableRepository, import_image
from data.layerindexes import DiffIdMismatch, LayerIndexes
from data.registry import SqlRegistry, content_path
from data.sources import (
    BlobNotInSource,
    ImageNotInSource,
    InvalidSource,
    MalformedSource,
    SourceNotFound,
    SourceTooLarge,
)
from data.storage.base import StorageUnavailable
from data.storage.distributed import DistributedStorage, StorageReadOnly
from data.storage.local import LocalStorage
from data.tables import Base, ImageStorage, Manifest, ManifestChild, Repository, Tag, User, now_ms
from test.databases import KINDS, database
from test.images import CONFIG, INDEX, MANIFEST, Image, Layer, Layout
from test.layers import file, gzipped, layer, zstd_frame
from util.digest import Digest, DigestMismatch
from util.document import MalformedConfig
from util.names import InvalidName
from util.problem import Damaged, Malformed, Problem, TooLarge

ONE = Image([Layer([file(b"a", b"1")]), Layer([file(b"b", b"2")], "zstd"), Layer([file(b"c")], "none")])
OTHER = Image([Layer([file(b"a", b"1")]), Layer([file(b"arm")])], "linux/arm64")


@dataclass
class Target:
    """A registry to import into."""

    folder: Path
    engine: Engine

    def __post_init__(self) -> None:
        self.storage = DistributedStorage({"here": LocalStorage(self.folder / "storage")}, ["here"])
        self.registry = SqlRegistry(self.engine)
        self.done = 0

    def take(self, source: str, name: str = "acme/app:1.0", *, private: bool = False) -> str:
        path, tag = name.rsplit(":", 1)
        namespace, repository = path.split("/", 1)
        indexes = LayerIndexes(self.storage)
        more: dict[str, Any] = {"engine": self.engine, "storage": self.storage, "indexes": indexes, "private": private}
        return str(import_image(source, namespace, repository, tag, progress=self.advance, **more))

    def advance(self, size: int) -> None:
        self.done += size

    def counts(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            tables = Base.metadata.tables
            return {name: connection.scalar(select(func.count()).select_from(tables[name])) or 0 for name in tables}

    def files(self) -> set[str]:
        root = self.folder / "storage"
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    def blob(self, digest: str) -> bytes:
        parsed = Digest.parse(digest)
        (found,) = self.registry.blobs("acme", "app", [parsed]).values()
        stream = self.storage.open(found.locations, found.path)
        try:
            return stream.read()
        finally:
            stream.close()


@pytest.fixture(params=KINDS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        yield Target(tmp_path, engine)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def refused(
    target: Target, source: str, kind: type[Problem] | tuple[type[Problem], ...], match: str | None = None
) -> None:
    """Import `source`, and expect that it is refused and that nothing of it can be seen."""
    before = target.counts()
    with pytest.raises(kind, match=match):
        target.take(source)
    assert target.counts() == before


# --- What comes in ----------------------------------------------------------------------------------------------------


def test_an_image_is_there_to_the_byte(target: Target, layout: Layout) -> None:
    descriptor = layout.image(ONE)
    digest = target.take(layout.tag("edge", descriptor))
    assert digest == descriptor["digest"]
    found = target.registry.manifest("acme", "app", "1.0")
    assert (str(found.digest), found.media_type) == (digest, descriptor["mediaType"])
    document = json.loads(found.content)
    for part in [document["config"], *document["layers"]]:
        assert f"sha256:{hashlib.sha256(target.blob(part['digest'])).hexdigest()}" == part["digest"]
    assert len([name for name in target.files() if name.startswith("verbs/layerindex/")]) == 3
    assert target.done == sum(part["size"] for part in [document["config"], *document["layers"]])
    info = target.registry.repository("acme", "app")
    assert (info.kind, info.public, info.namespace_enabled) == ("image", True, True)


def test_the_same_again_changes_nothing(target: Target, layout: Layout) -> None:
    source = layout.tag("edge", layout.index(ONE, OTHER))
    target.take(source)
    rows, files = target.counts(), target.files()
    target.take(source)
    assert (target.counts(), target.files()) == (rows, files)


def test_a_tag_that_is_moved_keeps_its_past(target: Target, layout: Layout) -> None:
    first, second = layout.image(ONE), layout.image(OTHER)
    for descriptor in (first, second, first):
        target.take(layout.tag(descriptor["digest"], descriptor))
    assert str(target.registry.manifest("acme", "app", "1.0").digest) == first["digest"]
    with target.engine.connect() as connection:
        rows = connection.execute(select(Tag.lifetime_start_ms, Tag.lifetime_end_ms).order_by(Tag.id)).all()
    assert [row.lifetime_end_ms is None for row in rows] == [False, False, True]
    assert rows[0].lifetime_end_ms == rows[1].lifetime_start_ms
    assert rows[0].lifetime_end_ms < rows[1].lifetime_end_ms == rows[2].lifetime_start_ms


def test_an_index_comes_with_all_its_images_and_attestations(target: Target, layout: Layout) -> None:
    images = [layout.image(ONE), layout.image(OTHER)]
    attestation = {
        **layout.artifact("application/vnd.oci.image.config.v1+json"),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    index = layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [*images, attestation]}, INDEX)
    target.take(layout.tag("edge", index))
    for part in (*images, attestation):
        assert str(target.registry.manifest("acme", "app", part["digest"]).digest) == part["digest"]
    with target.engine.connect() as connection:
        assert connection.scalar(select(func.count(ManifestChild.id))) == 3
        assert connection.scalar(select(func.count(Manifest.id))) == 4


def test_an_index_may_have_images_that_the_source_does_not(target: Target, layout: Layout) -> None:
    here, absent = layout.image(ONE), layout.image(OTHER)
    (layout.folder / "blobs/sha256" / absent["digest"][7:]).unlink()
    index = layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [absent, here]}, INDEX)
    target.take(layout.tag("edge", index))
    assert str(target.registry.manifest("acme", "app", here["digest"]).digest) == here["digest"]
    (layout.folder / "blobs/sha256" / here["digest"][7:]).unlink()
    refused(target, layout.tag("edge", index), BlobNotInSource, "does not have")


def test_an_artifact_comes_in_as_it_is(target: Target, layout: Layout) -> None:
    digest = target.take(layout.tag("chart", layout.artifact()))
    (part,) = json.loads(target.registry.manifest("acme", "app", digest).content)["layers"]
    assert target.blob(part["digest"]) == gzipped(b"chart")


def test_a_repository_is_made_as_private_only_when_it_is_made(target: Target, layout: Layout) -> None:
    source = layout.tag("edge", layout.image(ONE))
    target.take(source, "acme/hidden/deep:1.0", private=True)
    target.take(source, "acme/hidden/deep:2.0")
    assert not target.registry.repository("acme", "hidden/deep").public
    assert target.registry.tags("acme", "hidden/deep") == ("1.0", "2.0")


def test_an_image_is_found_by_name_digest_or_as_the_only_one(target: Target, layout: Layout) -> None:
    first, second = layout.image(ONE), layout.image(OTHER)
    layout.tag("a:b/c", first)
    path = layout.folder
    assert target.take(f"oci:{path}") == first["digest"]
    layout.tag("two", second)
    assert target.take(f"oci:{path}:a:b/c") == first["digest"]
    assert target.take(f"oci:{path}:{second['digest']}") == second["digest"]
    with pytest.raises(ImageNotInSource, match="a:b/c, two") as error:
        target.take(f"oci:{path}")
    assert error.value.existing == ("a:b/c", "two")
    with pytest.raises(ImageNotInSource, match="three"):
        target.take(f"oci:{path}:three")


@pytest.mark.parametrize("wrap", [bytes, gzipped, zstd_frame])
def test_an_archive_is_the_layout_in_one_file(
    target: Target, layout: Layout, tmp_path: Path, wrap: Callable[[bytes], bytes]
) -> None:
    descriptor = layout.image(ONE)
    layout.tag("edge", descriptor)
    path = tmp_path / "image:1.tar"
    source = layout.archive(path)
    path.write_bytes(wrap(path.read_bytes()))
    assert target.take(source) == descriptor["digest"]
    assert target.take(f"{source}:edge") == descriptor["digest"]


# --- docker save ------------------------------------------------------------------------------------------------------


Members = list[tuple[str, bytes | str]]


def write_tar(path: Path, members: Members) -> None:
    """Write files (bytes) and symlinks (text) into a tar."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)


BASE, TOP = layer(file(b"a", b"1")), layer(file(b"b", b"2"))


def docker_save(
    path: Path, changes: Mapping[str, bytes | str] | None = None, *, wrap: Callable[[bytes], bytes] = bytes
) -> str:
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in (BASE, TOP, BASE)]
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    names = ["1/layer.tar", "2/layer.tar", "3/layer.tar"]
    listed = [{"Config": "config.json", "RepoTags": ["acme/app:1.0"], "Layers": names}]
    members: dict[str, bytes | str] = {
        "manifest.json": json.dumps(listed).encode(),
        "config.json": json.dumps(config).encode(),
        "3/layer.tar": "../1/layer.tar",
        "1/layer.tar": wrap(BASE),
        "2/layer.tar": wrap(TOP),
        **(changes or {}),
    }
    write_tar(path, list(members.items()))
    return f"docker-archive:{path}"


@pytest.mark.parametrize("wrap", [bytes, gzipped])
def test_what_docker_saved_becomes_one_schema_2_image(
    target: Target, tmp_path: Path, wrap: Callable[[bytes], bytes]
) -> None:
    source = docker_save(tmp_path / "app.tar", wrap=wrap)
    digest = target.take(source)
    found = target.registry.manifest("acme", "app", "1.0")
    document = json.loads(found.content)
    assert found.media_type == document["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert [target.blob(part["digest"]) for part in document["layers"]] == [wrap(BASE), wrap(TOP), wrap(BASE)]
    suffix = ".gzip" if wrap is gzipped else ""
    types = {part["mediaType"] for part in document["layers"]}
    assert types == {f"application/vnd.docker.image.rootfs.diff.tar{suffix}"}
    for ref in ("acme/app:1.0", "docker.io/acme/app:1.0", "@0"):
        assert target.take(f"{source}:{ref}") == digest
    with pytest.raises(ImageNotInSource, match=r"acme/app:1\.0"):
        target.take(f"{source}:acme/app:2.0")


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"manifest.json": b"[]"}, ImageNotInSource, "0 images"),
        ({"manifest.json": b"{"}, Malformed, "malformed"),
        ({"manifest.json": b"[" + b" " * (5 << 20) + b"]"}, SourceTooLarge, "manifest.json"),
        ({"manifest.json": "nowhere"}, MalformedSource, "manifest.json is missing"),
        ({"config.json": b"{}"}, MalformedConfig, "diff_ids"),
        ({"config.json": "absent.json"}, BlobNotInSource, "config.json"),
        ({"2/layer.tar": "../absent"}, BlobNotInSource, "2/layer.tar"),
        ({"2/layer.tar": "../3/layer.tar", "1/layer.tar": "../2/layer.tar"}, MalformedSource, "without an end"),
        ({"2/layer.tar": "../../../etc/passwd"}, MalformedSource, "leads out"),
        ({"2/layer.tar": "/etc/passwd"}, MalformedSource, "leads out"),
        ({"../evil": b""}, MalformedSource, "leads out"),
        ({"/evil": b""}, MalformedSource, "leads out"),
        ({"2/layer.tar": BASE}, DiffIdMismatch, "configuration says"),
        ({"2/layer.tar": b"?" * 1024}, (Malformed, Damaged), "sha256:"),
    ],
)
def test_a_hostile_or_broken_archive_is_refused(
    target: Target, tmp_path: Path, changes: Mapping[str, bytes | str], kind: type[Problem], match: str
) -> None:
    refused(target, docker_save(tmp_path / "app.tar", changes), kind, match)


def test_a_cut_archive_is_refused(target: Target, tmp_path: Path) -> None:
    source = docker_save(tmp_path / "app.tar")
    whole = (tmp_path / "app.tar").read_bytes()
    for size in (0, 100, 700, 3000, len(BASE) + 4000):
        (tmp_path / "app.tar").write_bytes(whole[:size])
        refused(target, source, (Malformed, Damaged))
    (tmp_path / "app.tar").write_bytes(gzipped(whole)[:-4])
    refused(target, source, Damaged)


def test_an_archive_with_a_huge_header_or_too_many_members_is_refused(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "app.tar"
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 64 << 20
    path.write_bytes(info.tobuf())
    os.truncate(path, 65 << 20)
    refused(target, f"docker-archive:{path}", MalformedSource, "header")
    monkeypatch.setattr(sources, "MAX_MEMBERS", 3)
    refused(target, docker_save(path), SourceTooLarge, "members")


def test_an_archive_that_expands_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(gzipped(bytes(1 << 20)))
    with pytest.raises(TooLarge, match="VERBS_MAX_SIZE"), sources.open_source(f"oci-archive:{path}", max_size=1000):
        pass


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["other", "longer", "absent", "a pipe", "a link out"])
def test_a_damaged_layout_is_refused_and_nothing_is_half_imported(
    target: Target, layout: Layout, tmp_path: Path, part: str, damage: str
) -> None:
    descriptor = layout.image(ONE)
    manifest = json.loads((layout.folder / "blobs/sha256" / descriptor["digest"][7:]).read_bytes())
    parts = {"manifest": descriptor, "config": manifest["config"], "layer": manifest["layers"][1]}
    path = layout.folder / "blobs/sha256" / parts[part]["digest"][7:]
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "other":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "longer":
            path.write_bytes(content + b" ")
        case "a pipe":
            os.mkfifo(path)
        case "a link out":
            (tmp_path / "outside").write_bytes(content)
            path.symlink_to(tmp_path / "outside")
    kind = {"other": DigestMismatch, "longer": DigestMismatch, "absent": BlobNotInSource}.get(damage, MalformedSource)
    refused(target, layout.tag("edge", descriptor), kind)
    for name in target.files():
        if name.startswith("sha256/"):
            assert hashlib.sha256((tmp_path / "storage" / name).read_bytes()).hexdigest() == name[-64:]
    assert not any(parts[part]["digest"][7:] in name for name in target.files())


def test_a_malformed_layer_refuses_the_import(target: Target, layout: Layout) -> None:
    refused(target, layout.tag("edge", layout.image(Image([Layer(tar=b"?" * 1024)]))), (Malformed, Damaged), "sha256:")


def test_a_configuration_of_another_number_of_layers_refuses_the_import(target: Target, layout: Layout) -> None:
    descriptor = layout.image(ONE)
    manifest = json.loads((layout.folder / "blobs/sha256" / descriptor["digest"][7:]).read_bytes())
    manifest["layers"].pop()
    refused(target, layout.tag("edge", layout.document(manifest, descriptor["mediaType"])), MalformedConfig)


def test_schema_1_is_refused(target: Target, layout: Layout) -> None:
    v1 = {"id": "1"}
    document = {
        "schemaVersion": 1,
        "fsLayers": [{"blobSum": f"sha256:{'0' * 64}"}],
        "history": [{"v1Compatibility": json.dumps(v1)}],
    }
    media_type = "application/vnd.docker.distribution.manifest.v1+json"
    refused(target, layout.tag("old", layout.document(document, media_type)), Schema1NotImported, "schema 1")


def test_what_is_no_layout_is_refused(target: Target, layout: Layout, tmp_path: Path) -> None:
    refused(target, f"oci:{layout.folder}", MalformedSource, r"index\.json is missing")
    layout.tag("edge", layout.image(ONE))
    (layout.folder / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    refused(target, f"oci:{layout.folder}", MalformedSource, r"2\.0\.0")
    refused(target, f"oci:{tmp_path}", MalformedSource, "oci-layout is missing")
    refused(target, f"oci-archive:{layout.folder}", (SourceNotFound, MalformedSource))
    for absent in ("oci", "oci-archive", "docker-archive"):
        refused(target, f"{absent}:{tmp_path}/absent", SourceNotFound, "absent cannot be read")
    for nonsense in ("", "oci", "oci:", "docker://alpine", str(layout.folder)):
        refused(target, nonsense, InvalidSource, "no source")


@pytest.mark.parametrize(
    "name", ["Acme/app:1.0", "acme/App:1.0", "acme/a//b:1.0", "acme/../b:1.0", "acme/app:-1", f"acme/app:{'x' * 129}"]
)
def test_names_that_no_registry_has_are_refused(target: Target, name: str) -> None:
    with pytest.raises(InvalidName):
        target.take("oci:nowhere", name)


@pytest.mark.parametrize(("change", "match"), [({"state": 3}, "being deleted"), ({"kind_id": 2}, "application")])
def test_a_repository_that_takes_no_images_refuses_before_anything_is_read(
    target: Target, layout: Layout, change: Mapping[str, int], match: str
) -> None:
    target.take(layout.tag("edge", layout.image(ONE)))
    with writing(target.engine) as connection:
        connection.execute(Repository.__table__.update().values(**change))  # type: ignore[attr-defined]
    refused(target, "oci:nowhere", UnusableRepository, match)


def test_a_blob_that_was_cut_in_storage_is_healed(target: Target, layout: Layout, tmp_path: Path) -> None:
    source = layout.tag("edge", layout.image(ONE))
    target.take(source)
    name = max(name for name in target.files() if name.startswith("sha256/"))
    content = (tmp_path / "storage" / name).read_bytes()
    (tmp_path / "storage" / name).write_bytes(content[:-1])
    target.take(source)
    assert (tmp_path / "storage" / name).read_bytes() == content


def test_a_layer_that_lies_in_storage_is_held_to_each_configuration_that_names_it(
    target: Target, layout: Layout
) -> None:
    target.take(layout.tag("edge", layout.image(ONE)))
    manifest = json.loads(target.registry.manifest("acme", "app", "1.0").content)
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"]}}
    lying = {**manifest, "config": layout.document(config, CONFIG), "layers": manifest["layers"][:1]}
    refused(target, layout.tag("lying", layout.document(lying, MANIFEST)), DiffIdMismatch)


def test_a_read_only_registry_takes_nothing(target: Target, layout: Layout) -> None:
    local = LocalStorage(target.folder / "storage")
    target.storage = DistributedStorage({"here": local}, ["here"], readonly=True)
    refused(target, layout.tag("edge", layout.image(ONE)), StorageReadOnly, "read-only")
    assert target.files() == set()


def test_a_storage_that_fails_in_the_middle_leaves_no_part_and_no_row(
    target: Target, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layout.tag("edge", layout.image(ONE))
    replace, renamed = os.replace, 0

    def full_after_two(part: str, place: str) -> None:
        nonlocal renamed
        renamed += 1
        if renamed > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(part, place)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_after_two)
        refused(target, source, StorageUnavailable, "No space left on device")
    assert not any(".parts" in name for name in target.files())
    target.take(source)
    assert target.registry.tags("acme", "app") == ("1.0",)


def test_a_database_that_fails_at_the_last_row_has_none(
    target: Target, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layout.tag("edge", layout.image(ONE))
    before = target.counts()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(registryrows.RegistryRows, "tag", fail)
        with pytest.raises(ZeroDivisionError):
            target.take(source)
    assert target.counts() == before
    target.take(source)
    assert target.registry.tags("acme", "app") == ("1.0",)


def test_what_garbage_took_before_the_rows_is_put_there_again(
    target: Target, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layout.tag("edge", layout.image(ONE))
    asked: list[bool] = []
    has_all = importer._Keeper.has_all

    def first_without_one(keeper: importer._Keeper) -> bool:
        if not asked:
            (target.folder / "storage" / content_path(min(keeper.kept))).unlink()
        asked.append(has_all(keeper))
        return asked[-1]

    monkeypatch.setattr(importer._Keeper, "has_all", first_without_one)
    target.take(source)
    assert asked == [False, True]
    document = json.loads(target.registry.manifest("acme", "app", "1.0").content)
    for part in (document["config"], *document["layers"]):
        assert len(target.blob(part["digest"])) == part["size"]


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_rows_say_what_quay_s_say(target: Target, layout: Layout) -> None:
    image = layout.image(ONE)
    subject = {"mediaType": MANIFEST, "digest": image["digest"], "size": image["size"]}
    artifact = json.loads((layout.folder / "blobs/sha256" / layout.artifact()["digest"][7:]).read_bytes())
    signed = {**artifact, "subject": subject, "artifactType": "application/vnd.example.signature"}
    target.take(layout.tag("edge", image))
    target.take(layout.tag("signature", layout.document(signed, MANIFEST)), "acme/app:signature")
    columns = (
        Manifest.config_media_type,
        Manifest.layers_compressed_size,
        Manifest.subject,
        Manifest.subject_backfilled,
        Manifest.artifact_type,
        Manifest.artifact_type_backfilled,
    )
    with target.engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(select(*columns).order_by(Manifest.id))]
        blobs = connection.execute(select(ImageStorage.content_checksum, ImageStorage.uncompressed_size)).all()
        states = connection.execute(select(ImageStorage.uploading, ImageStorage.cas_path).distinct()).all()
        organization = connection.scalar(select(User.organization))
    assert rows == [
        (CONFIG, sum(len(layer.blob) for layer in ONE.layers), None, True, None, True),
        (
            "application/vnd.cncf.helm.config.v1+json",
            None,
            image["digest"],
            True,
            "application/vnd.example.signature",
            True,
        ),
    ]
    known = {checksum: size for checksum, size in blobs if size is not None}
    assert known == {str(Digest.of(layer.blob)): len(layer.content) for layer in ONE.layers}
    assert [tuple(row) for row in states] == [(True, True)]
    assert organization


def test_an_attestation_s_blobs_are_kept_and_not_indexed(target: Target, layout: Layout) -> None:
    statement = layout.blob(b'{"_type": "https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json")
    nowhere = {"os": "unknown", "architecture": "unknown"}
    config = {**nowhere, "rootfs": {"type": "layers", "diff_ids": [statement["digest"]]}}
    attestation = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.document(config, CONFIG),
        "layers": [statement],
    }
    entry = {
        **layout.document(attestation, MANIFEST),
        "platform": nowhere,
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [layout.image(OTHER), entry]}
    target.take(layout.tag("edge", layout.document(index, INDEX)))
    assert target.blob(statement["digest"]).startswith(b'{"_type"')
    assert len([name for name in target.files() if name.startswith("verbs/")]) == len(OTHER.layers)


def test_a_foreign_layer_need_not_be_in_the_source(target: Target, layout: Layout) -> None:
    manifest = json.loads((layout.folder / "blobs/sha256" / layout.image(ONE)["digest"][7:]).read_bytes())
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": f"sha256:{'0' * 64}",
        "size": 1000,
        "urls": ["https://example.com/layer"],
    }
    windows = {**manifest, "layers": [foreign, *manifest["layers"]]}
    digest = target.take(layout.tag("windows", layout.document(windows, MANIFEST)))
    assert digest == str(target.registry.manifest("acme", "app", "1.0").digest)
    known = target.registry.blobs("acme", "app", [Digest.parse(part["digest"]) for part in windows["layers"]])
    assert [str(each) for each in known] == [part["digest"] for part in manifest["layers"]]


def test_an_image_that_an_index_names_twice_is_imported_once(target: Target, layout: Layout) -> None:
    image = layout.image(ONE)
    twice = layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image, image]}, INDEX)
    target.take(layout.tag("edge", twice))
    assert target.counts()["manifest"] == 2
    assert target.counts()["manifestchild"] == 1


def test_an_index_inside_an_index_is_imported(target: Target, layout: Layout) -> None:
    inner = layout.index(ONE, OTHER)
    outer = layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}, INDEX)
    target.take(layout.tag("edge", outer))
    for part in (inner, layout.image(ONE), layout.image(OTHER)):
        assert str(target.registry.manifest("acme", "app", part["digest"]).digest) == part["digest"]


def test_indexes_without_an_end_are_refused(target: Target, layout: Layout) -> None:
    descriptor = layout.image(ONE)
    for _ in range(10):
        descriptor = layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}, INDEX)
    refused(target, layout.tag("deep", descriptor), ImageTooLarge, "indexes 8 deep")


def test_too_many_manifests_are_refused(target: Target, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MAX_DOCUMENTS", 1)
    refused(target, layout.tag("edge", layout.index(ONE, OTHER)), ImageTooLarge, "more than 1 manifests")


def test_a_document_that_claims_to_be_huge_is_refused_unread(target: Target, layout: Layout) -> None:
    descriptor = {**layout.image(ONE), "size": 1 << 40}
    refused(target, layout.tag("edge", descriptor), ImageTooLarge, "at most 4194304")


def test_a_tag_that_would_have_ended_by_itself_ends_when_it_is_moved(target: Target, layout: Layout) -> None:
    target.take(layout.tag("one", layout.image(ONE)))
    with writing(target.engine) as connection:
        connection.execute(update(Tag).values(lifetime_end_ms=now_ms() + 3_600_000))
    target.take(f"oci:{layout.folder}:one")
    with target.engine.connect() as connection:
        rows = connection.execute(select(Tag.lifetime_end_ms).order_by(Tag.id)).all()
    assert rows[0].lifetime_end_ms <= now_ms()
    assert [row.lifetime_end_ms for row in rows[1:]] == [None]


def test_a_tag_may_be_moved_faster_than_the_clock_goes(
    target: Target, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registryrows, "now_ms", lambda: 1_700_000_000_000)
    for name, image in (("one", ONE), ("other", OTHER)):
        layout.tag(name, layout.image(image))
    for name in ("one", "other", "one", "other"):
        target.take(f"oci:{layout.folder}:{name}")
    with target.engine.connect() as connection:
        rows = connection.execute(select(Tag.lifetime_start_ms, Tag.lifetime_end_ms).order_by(Tag.id)).all()
    first = 1_700_000_000_000
    assert [tuple(row) for row in rows] == [*((first + at, first + at + 1) for at in range(3)), (first + 3, None)]


def test_imports_side_by_side_do_not_disturb_each_other(target: Target, layout: Layout) -> None:
    descriptors = [layout.index(ONE, OTHER), layout.image(ONE), layout.image(OTHER)]
    for descriptor in descriptors:
        layout.tag(descriptor["digest"], descriptor)
    sources_ = [f"oci:{layout.folder}:{descriptor['digest']}" for descriptor in descriptors] * 3
    with ThreadPoolExecutor(len(sources_)) as pool:
        taken = list(pool.map(target.take, sources_))
    assert set(taken) == {descriptor["digest"] for descriptor in descriptors}
    assert target.registry.tags("acme", "app") == ("1.0",)
    with target.engine.connect() as connection:
        assert connection.scalar(select(func.count(Tag.id)).where(Tag.lifetime_end_ms.is_(None))) == 1
    counts = target.counts()
    assert (counts["user"], counts["repository"], counts["manifest"]) == (1, 1, 3)
    assert counts["imagestorage"] == counts["imagestorageplacement"] == len({*target.files()} - verbs(target))


def verbs(target: Target) -> set[str]:
    return {name for name in target.files() if name.startswith("verbs/")}


def test_a_large_layer_is_not_held_in_memory(target: Target, layout: Layout) -> None:
    source = layout.tag("edge", layout.image(Image([Layer([file(b"large", bytes(64 << 20))], "none")])))
    tracemalloc.start()
    try:
        target.take(source)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
