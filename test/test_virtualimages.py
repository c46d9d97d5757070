"""Images in one layer: one object, documents that are always the same, and what is told to who cannot wait for them."""

import gzip
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.owntables import DatabaseUnavailable
from data.storage.base import StorageUnavailable
from data.storage.local import LocalStorage
from data.virtuals import Virtual, Virtuals
from endpoints.derive import DerivedImage, Deriver, Wish
from endpoints.image import BlobCutShort
from endpoints.maker import NotKept
from endpoints.making import Busy, Makings
from endpoints.packing import Packing
from endpoints.virtualimages import COMPRESSION, VERB, NotStored, StillMaking, VirtualImages, _Reader
from formats.squashed import squashed_config
from test.images import CONFIG, LAYER, MANIFEST, Image, Layer
from test.layers import file
from test.makers import Gate
from test.place import Place
from test.waiting import eventually
from util.digest import Digest
from util.platform import Platform

LARGE = Image(
    [Layer([file(b"noise", os.urandom(6 << 20))]), Layer([file(b"etc/hostname", b"here\n")])],
    run={"Env": ["A=1"], "Cmd": ["/bin/sh"]},
)
HALF = 3 << 20


class Here:
    """A place with an image, and what one process makes there in one layer."""

    def __init__(self, place: Place) -> None:
        self.place, self.services = place, place.services()
        self.makings = Makings(self.services)
        self.images = VirtualImages(self.services, self.makings)

    def image(self, tag: str = "1.0", platform: str | None = None, repository: str = "app") -> DerivedImage:
        wanted = None if platform is None else Platform.parse(platform)
        return Deriver(self.services).resolve(Wish(VERB, "acme", repository, tag, wanted, COMPRESSION))

    def manifest(self, *arguments: Any) -> Virtual:
        return self.images.manifest(self.image(*arguments))

    def layer(self, manifest: Virtual) -> bytes:
        [descriptor] = document(manifest)["layers"]
        found = self.services.virtuals.find("acme", "app", Digest.parse(descriptor["digest"]))
        assert found is not None
        assert found.path is not None
        content = (self.place.storage / found.path).read_bytes()
        assert descriptor == {
            "mediaType": f"{LAYER}+gzip",
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "size": len(content),
        }
        return content

    def config(self, manifest: Virtual) -> Any:
        descriptor = document(manifest)["config"]
        found = self.services.virtuals.find("acme", "app", Digest.parse(descriptor["digest"]))
        assert found is not None
        assert found.content is not None
        assert descriptor == {"mediaType": CONFIG, "digest": str(found.digest), "size": len(found.content)}
        return json.loads(found.content)


def document(manifest: Virtual) -> Any:
    assert manifest.content is not None
    assert Digest.of(manifest.content) == manifest.digest
    return json.loads(manifest.content)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("filled"))
    place.push("acme/app:1.0", LARGE)
    return place.folder / "var"


@pytest.fixture
def place(filled: Path, tmp_path: Path) -> Place:
    shutil.copytree(filled, tmp_path / "var")
    return Place(tmp_path)


Others = Callable[..., Here]


@pytest.fixture
def others(place: Place) -> Iterator[Others]:
    """Return what gives the same place as another process has it, with further settings."""
    given: list[Here] = []
    before = set(threading.enumerate())

    def other(**settings: Any) -> Here:
        # Whoever waits gets it, however long it takes.
        given.append(Here(Place(place.folder, {**place.more, "VERBS_PULL_SECONDS": 600, **settings})))
        return given[-1]

    yield other
    for here in given:
        here.makings.close()
    eventually(lambda: not [each for each in set(threading.enumerate()) - before if each.name.startswith("virtual")])


@pytest.fixture
def here(others: Others) -> Here:
    return others()


# --- What it is -------------------------------------------------------------------------------------------------------


def test_the_image_is_one_layer_and_the_squashed_configuration(here: Here) -> None:
    manifest = here.manifest()
    assert set(document(manifest)) == {"schemaVersion", "mediaType", "config", "layers"}
    assert (manifest.media_type, document(manifest)["mediaType"]) == (MANIFEST, MANIFEST)
    rootfs = gzip.decompress(here.layer(manifest))
    plain = Deriver(here.services).resolve(Wish(VERB, "acme", "app", "1.0"))
    assert rootfs == b"".join(Deriver(here.services).generate(plain).chunks)
    config = here.config(manifest)
    assert config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(rootfs).hexdigest()}"]}
    assert config["config"] == {"Env": ["A=1"], "Cmd": ["/bin/sh"]}
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert [entry.get("empty_layer", False) for entry in config["history"]] == [True, True, False]


def test_the_configuration_is_that_of_the_squashed_archive(here: Here) -> None:
    manifest = here.manifest()
    config = here.config(manifest)
    [diff_id] = config["rootfs"]["diff_ids"]
    assert config == json.loads(squashed_config(here.image().source, Digest.parse(diff_id)))


def test_the_layer_is_the_derived_image_and_no_copy_of_it(here: Here) -> None:
    record = here.makings.make(here.image())
    before = here.place.files()
    manifest = here.manifest()
    assert here.place.files() == before
    assert document(manifest)["layers"][0]["digest"] == f"sha256:{record.sha256}"


def test_the_digest_is_the_same_whenever_it_is_made_and_by_whom(here: Here, others: Others) -> None:
    first = here.manifest()
    assert here.manifest() == first
    assert others().manifest() == first
    record = here.services.derived.delete(first.key)
    assert record is not None
    (here.place.storage / record.path).unlink()
    again = others().manifest()
    assert again == first
    assert here.layer(again)


def test_an_object_that_has_vanished_is_made_anew(here: Here) -> None:
    first = here.manifest()
    record = here.services.derived.find(first.key)
    assert record is not None
    (here.place.storage / record.path).unlink()
    assert here.manifest() == first
    assert here.layer(first)


def test_what_the_layer_unwraps_to_is_found_out_once(
    here: Here, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = here.manifest()
    here.services.derived.delete(first.key)
    monkeypatch.delattr("endpoints.virtualimages.decompressed")
    assert others().manifest() == first
    assert here.layer(first)


def test_what_an_archive_has_found_out_need_not_be_found_out_again(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    deriver = Deriver(here.services)
    b"".join(deriver.generate(deriver.resolve(Wish("oci", "acme", "app", "1.0"))).chunks)
    monkeypatch.delattr("endpoints.virtualimages.decompressed")
    config = here.config(here.manifest())
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(_plain(here)).hexdigest()}"]


def test_what_was_found_out_of_other_bytes_is_found_out_anew(here: Here) -> None:
    first = here.manifest()
    packing, image = Packing(here.services), here.image()
    known = packing.known(image)
    assert known is not None
    other = replace(known, diff_id=Digest.of(b"other"))
    for wrong in (replace(other, digest=Digest.of(b"other")), replace(other, size=1)):
        packing.remember(image, wrong)
        here.services.virtuals.sweep()
        here.services.derived.delete(first.key)
        assert here.manifest() == first
        assert packing.known(image) == known


def _plain(here: Here) -> bytes:
    plain = Deriver(here.services).resolve(Wish(VERB, "acme", "app", "1.0"))
    return b"".join(Deriver(here.services).generate(plain).chunks)


def test_each_platform_has_an_image_of_its_own(here: Here) -> None:
    platforms = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    images = [Image([Layer([file(b"arch", name.encode())])], name) for name in platforms]
    here.place.push("acme/app:multi", *images)
    manifests = {name: here.manifest("multi", name) for name in platforms}
    assert len({each.digest for each in manifests.values()}) == 3
    for name, manifest in manifests.items():
        assert name.encode() in gzip.decompress(here.layer(manifest))
        config = here.config(manifest)
        assert name.split("/")[:2] == [config["os"], config["architecture"]]
    assert here.manifest("multi") == manifests["linux/amd64"]


def test_images_that_differ_in_their_configuration_alone_share_their_layer_s_digest(here: Here) -> None:
    here.place.push("acme/app:other", Image(LARGE.layers, run={"Env": ["A=2"]}))
    one, two = here.manifest(), here.manifest("other")
    assert one.digest != two.digest
    assert document(one)["layers"] == document(two)["layers"]
    here.services.derived.delete(one.key)
    here.services.virtuals.sweep()
    assert here.layer(two)


def test_an_image_without_layers_is_one_empty_layer(here: Here) -> None:
    here.place.push("acme/app:empty", Image())
    assert set(gzip.decompress(here.layer(here.manifest("empty")))) == {0}


# --- Making -----------------------------------------------------------------------------------------------------------


def test_sixteen_who_ask_at_once_have_it_made_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    gate.opened.set()
    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(lambda _: _asked(here), range(16)))
    assert gate.generations == 1
    assert {outcome.digest for outcome in outcomes if isinstance(outcome, Virtual)} == {here.manifest().digest}


def _asked(here: Here) -> Virtual | StillMaking:
    try:
        return here.manifest()
    except StillMaking as still:
        return still


def test_what_takes_longer_is_told_with_how_far_it_is(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others(VERBS_PULL_SECONDS=0)
    gate = Gate(monkeypatch, HALF)
    with pytest.raises(StillMaking, match=r"^acme/app:1.0 in one layer is being made: .*; ask again in \d+ seconds$"):
        here.manifest()
    assert gate.reached.wait(60)

    def told() -> StillMaking | None:
        with pytest.raises(StillMaking) as caught:
            here.manifest()
        return caught.value if "%" in str(caught.value) else None

    still = eventually(told)
    assert 1 <= still.retry_after <= 60
    assert gate.generations == 1
    gate.opened.set()
    manifest = eventually(lambda: outcome if isinstance(outcome := _asked(here), Virtual) else None)
    assert here.layer(manifest)
    assert gate.generations == 1


def test_who_waits_gets_it_as_soon_as_it_is_there(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, HALF)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(here.manifest)
        assert gate.reached.wait(60)
        assert not asking.done()
        gate.opened.set()
        assert here.layer(asking.result(60))


def test_no_more_wait_at_a_time_than_leave_threads_for_others(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others()
    gate = Gate(monkeypatch, HALF)
    with ThreadPoolExecutor(16) as pool:
        asking = [pool.submit(_asked, here) for _ in range(16)]
        eventually(lambda: sum(each.done() for each in asking) == 8)
        gate.opened.set()
        outcomes = [each.result(60) for each in asking]
    assert sum(isinstance(each, StillMaking) for each in outcomes) == 8
    assert sum(isinstance(each, Virtual) for each in outcomes) == 8


def test_more_than_may_be_made_is_refused_as_elsewhere(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others(VERBS_MAX_MAKINGS=1)
    here.place.push("acme/app:2.0", Image([Layer([file(b"other", b"one")])]))
    gate = Gate(monkeypatch, HALF)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(here.manifest)
        assert gate.reached.wait(60)
        with pytest.raises(Busy):
            here.manifest("2.0")
        gate.opened.set()
        assert asking.result(60) == here.manifest()


def test_where_something_has_run_before_a_fork_it_is_begun_anew(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BlobCutShort):
        _broken(here).manifest()
    here.images._waiting.acquire()
    before = here.images._lock
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(BlobCutShort):
        here.manifest()
    assert here.images._lock is not before


# --- What fails -------------------------------------------------------------------------------------------------------


def _broken(here: Here) -> Here:
    blob = here.place.blob(LARGE.layers[0])
    blob.write_bytes(blob.read_bytes()[:-10])
    return here


def test_an_image_that_cannot_be_made_is_told_of_as_the_verbs_do(here: Here) -> None:
    with pytest.raises(BlobCutShort):
        _broken(here).manifest()
    eventually(lambda: here.images._works == {})


class Failing(Gate):
    """Holds a generation, and has it fail then."""

    def _wait(self) -> None:
        super()._wait()
        raise BlobCutShort("the layer is short")


def test_who_was_told_to_ask_again_is_told_why_it_failed(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others(VERBS_PULL_SECONDS=0)
    gate = Failing(monkeypatch, HALF)
    with pytest.raises(StillMaking):
        here.manifest()
    assert gate.reached.wait(60)
    gate.opened.set()

    def failed() -> bool:
        try:
            return isinstance(_asked(here), Virtual)
        except BlobCutShort:
            return True

    eventually(failed)
    with pytest.raises(BlobCutShort):
        here.manifest()
    assert gate.generations == 1
    monkeypatch.setattr("endpoints.virtualimages._TOLD_SECONDS", 0)
    gate.opened.clear()
    with pytest.raises(StillMaking):
        here.manifest()
    eventually(lambda: gate.generations == 2)
    gate.opened.set()


def test_what_cannot_be_stored_is_not_served(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageUnavailable("the disk is full")

    monkeypatch.setattr(LocalStorage, "create", full)
    with pytest.raises(NotKept, match="the disk is full"):
        here.manifest()
    monkeypatch.undo()
    assert here.layer(here.manifest())


def test_without_our_own_database_there_is_none(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("it is down")

    monkeypatch.setattr(Virtuals, "add", down)
    with pytest.raises(DatabaseUnavailable):
        here.manifest()
    monkeypatch.undo()
    monkeypatch.setattr(type(here.services.derived), "find", down)
    with pytest.raises(DatabaseUnavailable):
        here.manifest()


def test_an_image_that_is_dropped_while_its_documents_are_made_is_made_again(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Virtuals.add
    dropped: list[Any] = []

    def dropping(virtuals: Virtuals, record: Any, *arguments: Any, **more: Any) -> bool:
        if not dropped:
            dropped.append(here.services.derived.delete(record.key))
        return add(virtuals, record, *arguments, **more)

    monkeypatch.setattr(Virtuals, "add", dropping)
    assert here.layer(here.manifest())


def test_one_that_is_always_dropped_is_given_up(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Virtuals, "add", lambda *_, **__: False)
    with pytest.raises(NotKept, match="dropped as often as it was made"):
        here.manifest()


def test_a_read_only_registry_serves_what_is_stored_and_makes_nothing(here: Here, others: Others) -> None:
    readonly = others(REGISTRY_STATE="readonly")
    with pytest.raises(NotStored, match=r"^acme/app:1.0 in one layer is not stored, and the registry is read-only"):
        readonly.manifest()
    manifest = here.manifest()
    assert readonly.manifest() == manifest
    assert readonly.layer(manifest)


def test_a_pull_counts_as_a_fetch(here: Here) -> None:
    manifest = here.manifest()
    here.manifest()
    here.makings.close()
    record = here.services.derived.find(manifest.key)
    assert record is not None
    assert record.fetched_ms is not None


def test_a_process_that_ends_leaves_no_image_half_made(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    here = others(VERBS_PULL_SECONDS=0)
    gate = Gate(monkeypatch, HALF)
    with pytest.raises(StillMaking):
        here.manifest()
    assert gate.reached.wait(60)
    [maker] = here.makings._running.values()
    closing = threading.Thread(target=here.makings.close)
    closing.start()
    assert maker._stopping.wait(60)
    gate.opened.set()
    closing.join()
    assert maker.done.wait(60)
    eventually(lambda: not here.images._works)
    assert list(here.place.storage.glob("verbs/derived/*/*/*")) == []
    assert here.layer(others().manifest())


# --- Chunks as a stream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 100, -1])
def test_chunks_are_read_as_a_stream(size: int) -> None:
    reader, pieces = _Reader(iter([b"", b"abc", b"", b"d", b""])), []
    while piece := reader.read(size):
        assert size < 0 or len(piece) <= size
        pieces.append(piece)
    reader.close()
    assert b"".join(pieces) == b"abcd"
    assert reader.read(size) == b""
