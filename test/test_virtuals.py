"""What virtual tags give by digest, as rows: for how long, in which repository, and of which derived image."""

import hashlib
from dataclasses import replace

from sqlalchemy import select

from data.database import Engine
from data.derivedimages import DerivedImages, DerivedRecord, Lease, NewDerived
from data.owntables import VirtualRow, reading
from data.virtuals import Document, Virtual, Virtuals
from util.digest import Digest

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def derived(engine: Engine, key: str = "a" * 64, *, sha256: str = "1" * 64, repository: str = "app") -> DerivedRecord:
    """Return the record of a derived image that is complete; made anew where it was dropped."""
    rows = DerivedImages(engine)
    new = NewDerived(
        key=key,
        namespace="acme",
        repository=repository,
        reference="1.0",
        manifest_digest=f"sha256:{'0' * 64}",
        verb="rootfs",
        platform="linux/amd64",
        compression="gzip",
        media_type="application/gzip",
        file_name="acme_app_1.0.tar.gz",
    )
    lease = rows.claim(new, host="here")
    assert isinstance(lease, Lease)
    assert rows.complete(lease, size=10, sha256=sha256)
    record = rows.find(key)
    assert record is not None
    return record


def documents(text: str = "") -> tuple[Document, Document]:
    return Document(MANIFEST, f'{{"manifest":"{text}ü"}}'.encode()), Document(CONFIG, f'{{"config":"{text}"}}'.encode())


def add(engine: Engine, record: DerivedRecord, text: str = "") -> tuple[Document, Document]:
    both = documents(text)
    assert Virtuals(engine).add(record, *both, layer_media_type=LAYER)
    return both


def drop(engine: Engine, record: DerivedRecord) -> None:
    assert DerivedImages(engine).delete(record.key) is not None


def rows(engine: Engine) -> int:
    return len(reading(engine, lambda connection: connection.execute(select(VirtualRow.digest)).all()))


def test_a_document_is_found_by_its_digest_with_the_bytes_it_was_given(engine: Engine) -> None:
    record = derived(engine)
    manifest, config = add(engine, record)
    found = Virtuals(engine).find("acme", "app", manifest.digest)
    assert found == Virtual(manifest.digest, MANIFEST, manifest.content, record.key, len(manifest.content), None)
    assert manifest.digest == Digest("sha256", hashlib.sha256(manifest.content).hexdigest())
    other = Virtuals(engine).find("acme", "app", config.digest)
    assert other is not None
    assert (other.media_type, other.content) == (CONFIG, config.content)


def test_the_layer_is_where_the_derived_image_is(engine: Engine) -> None:
    record = derived(engine)
    add(engine, record)
    digest = Digest("sha256", "1" * 64)
    found = Virtuals(engine).find("acme", "app", digest)
    assert found == Virtual(digest, LAYER, None, record.key, 10, record.path)


def test_a_document_of_a_megabyte_is_kept_whole(engine: Engine) -> None:
    record = derived(engine)
    manifest, _ = add(engine, record, "x" * (1 << 20))
    found = Virtuals(engine).find("acme", "app", manifest.digest)
    assert found is not None
    assert found.content == manifest.content


def test_the_manifest_is_found_by_the_derived_image(engine: Engine) -> None:
    record = derived(engine)
    assert Virtuals(engine).document(record, MANIFEST) is None
    manifest, _ = add(engine, record)
    found = Virtuals(engine).document(record, MANIFEST)
    assert found is not None
    assert found.digest == manifest.digest


def test_another_repository_has_none_of_it(engine: Engine) -> None:
    manifest, _ = add(engine, derived(engine))
    assert Virtuals(engine).find("acme", "other", manifest.digest) is None
    assert Virtuals(engine).find("other", "app", manifest.digest) is None
    assert Virtuals(engine).find("acme", "App", manifest.digest) is None


def test_nothing_is_there_without_the_derived_image(engine: Engine) -> None:
    record = derived(engine)
    manifest, config = add(engine, record)
    drop(engine, record)
    virtuals = Virtuals(engine)
    for digest in (manifest.digest, config.digest, Digest("sha256", "1" * 64)):
        assert virtuals.find("acme", "app", digest) is None
    assert virtuals.document(record, MANIFEST) is None


def test_what_is_made_again_with_the_same_bytes_is_there_again(engine: Engine) -> None:
    record = derived(engine)
    manifest, _ = add(engine, record)
    drop(engine, record)
    again = derived(engine)
    found = Virtuals(engine).document(again, MANIFEST)
    assert found is not None
    assert found.digest == manifest.digest
    layer = Virtuals(engine).find("acme", "app", Digest("sha256", "1" * 64))
    assert layer is not None
    assert layer.path == again.path


def test_what_is_made_again_with_other_bytes_takes_the_place_of_what_was(engine: Engine) -> None:
    record = derived(engine)
    old, _ = add(engine, record, "old")
    drop(engine, record)
    again = derived(engine, sha256="2" * 64)
    virtuals = Virtuals(engine)
    assert virtuals.document(again, MANIFEST) is None
    assert virtuals.find("acme", "app", old.digest) is None  # its layer is nowhere any more
    new, _ = add(engine, again, "new")
    found = virtuals.document(again, MANIFEST)
    assert found is not None
    assert found.digest == new.digest
    assert virtuals.find("acme", "app", Digest("sha256", "1" * 64)) is None
    assert rows(engine) == 3


def test_adding_twice_changes_nothing(engine: Engine) -> None:
    record = derived(engine)
    add(engine, record)
    add(engine, record)
    assert rows(engine) == 3


def test_nothing_is_added_to_a_derived_image_that_is_gone(engine: Engine) -> None:
    record = derived(engine)
    drop(engine, record)
    assert not Virtuals(engine).add(record, *documents(), layer_media_type=LAYER)
    derived(engine)  # made anew by another
    assert not Virtuals(engine).add(record, *documents(), layer_media_type=LAYER)
    assert rows(engine) == 0


def test_two_images_that_are_the_same_to_the_byte_are_each_kept_for_themselves(engine: Engine) -> None:
    one, two = derived(engine, "a" * 64), derived(engine, "b" * 64)
    add(engine, one, "one")
    manifest, _ = add(engine, two, "two")
    drop(engine, one)
    virtuals = Virtuals(engine)
    assert virtuals.sweep() == 3
    layer = virtuals.find("acme", "app", Digest("sha256", "1" * 64))
    assert layer is not None
    assert layer.path == two.path
    assert virtuals.find("acme", "app", manifest.digest) is not None


def test_the_sweep_takes_what_has_no_derived_image_and_nothing_else(engine: Engine) -> None:
    kept, gone, making = derived(engine, "a" * 64), derived(engine, "b" * 64), derived(engine, "c" * 64)
    for record in (kept, gone, making):
        add(engine, record, record.key)
    drop(engine, gone)
    drop(engine, making)
    fields = {name: getattr(making, name) for name in NewDerived.__dataclass_fields__}
    assert isinstance(DerivedImages(engine).claim(NewDerived(**fields), host="here"), Lease)
    virtuals = Virtuals(engine)
    assert virtuals.sweep(dry_run=True) == 3
    assert rows(engine) == 9
    assert virtuals.sweep() == 3
    assert rows(engine) == 6
    assert virtuals.sweep() == 0
    assert virtuals.document(kept, MANIFEST) is not None
    assert virtuals.document(replace(kept, key="d" * 64), MANIFEST) is None
