"""Deriving, without HTTP: what is in a key, what is found before the first byte, and how large it will be."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from data.storage.base import BlobNotFound
from endpoints.derive import BlobCutShort, Deriver, Wish
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from util.compression import Compression
from util.problem import Damaged, TooLarge

SMALL = Image([Layer([file(b"etc/hostname", b"here\n")])])
NOISE = os.urandom(4 << 20)
LARGE = Image([Layer([file(b"noise", NOISE)]), Layer([file(b"etc/hostname", b"here\n")])])
SQUASH = Wish("squash", "acme", "app", "1.0")
ROOTFS = Wish("rootfs", "acme", "app", "1.0")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def made(deriver: Deriver, wish: Wish) -> bytes:
    return b"".join(deriver.generate(deriver.resolve(wish)).chunks)


# --- The key ----------------------------------------------------------------------------------------------------------


def test_one_wish_has_one_key_in_every_process(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    first, second = place.deriver().resolve(SQUASH), place.deriver().resolve(SQUASH)
    assert first.key == second.key
    assert len(first.key) == 64


def test_everything_that_varies_is_in_the_key(place: Place) -> None:
    for name in ("acme/app:1.0", "acme/app:2.0", "acme/other:1.0", "other/app:1.0"):
        place.push(name, SMALL)
    place.push("acme/app:3.0", LARGE)
    deriver = place.deriver()
    wishes = [
        SQUASH,
        ROOTFS,
        replace(SQUASH, reference="2.0"),
        replace(SQUASH, reference="3.0"),
        replace(SQUASH, repository="other"),
        replace(SQUASH, namespace="other"),
        replace(SQUASH, compression=Compression.NONE),
        replace(SQUASH, compression=Compression.ZSTD),
    ]
    keys = [deriver.resolve(wish).key for wish in wishes]
    settings = ({"SERVER_HOSTNAME": "other.example.com"}, {"PREFERRED_URL_SCHEME": "https"})
    keys += [Place(place.folder, setting).deriver().resolve(SQUASH).key for setting in settings]
    assert len(set(keys)) == len(wishes) + 2


def test_a_new_revision_of_a_format_has_new_keys(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver = place.deriver()
    before = deriver.resolve(SQUASH)
    monkeypatch.setattr(type(before.formatter), "revision", before.formatter.revision + 1)
    assert deriver.resolve(SQUASH).key != before.key


def test_the_default_compression_and_the_same_one_asked_for_share_a_key(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver = place.deriver()
    assert deriver.resolve(SQUASH).key == deriver.resolve(replace(SQUASH, compression=Compression.GZIP)).key


def test_the_image_s_id_does_not_depend_on_what_it_is_wrapped_in(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver = place.deriver()
    ids = {deriver.resolve(replace(SQUASH, compression=each)).source.image_id for each in Compression}
    assert len(ids) == 1


def test_a_file_name_holds_safe_characters_only(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    image = place.deriver().resolve(ROOTFS)
    odd = replace(image, source=replace(image.source, namespace='a"; b', repository="c/d\r\n", tag="é"))
    assert odd.file_name == "a-b_c_d-_--linux-amd64.tar"


# --- Before the first byte --------------------------------------------------------------------------------------------


def test_a_missing_layer_is_found_before_the_first_byte(place: Place) -> None:
    place.push("acme/app:1.0", LARGE)
    place.blob(LARGE.layers[1]).unlink()
    deriver = place.deriver()
    image = deriver.resolve(SQUASH)
    with pytest.raises(BlobNotFound):
        deriver.generate(image)


def test_a_layer_cut_short_is_found_before_the_first_byte(place: Place) -> None:
    place.push("acme/app:1.0", LARGE)
    blob = place.blob(LARGE.layers[1])
    blob.write_bytes(blob.read_bytes()[:-1])
    deriver = place.deriver()
    image = deriver.resolve(SQUASH)
    with pytest.raises(BlobCutShort, match=f"layer sha256:{hashlib.sha256(LARGE.layers[1].blob).hexdigest()} has"):
        deriver.generate(image)


def test_other_bytes_in_a_layer_that_is_not_indexed_are_found_before_the_first_byte(place: Place) -> None:
    place.push("acme/app:1.0", LARGE)
    place.forget_indexes()
    spoil(place.blob(LARGE.layers[0]))
    deriver = place.deriver()
    image = deriver.resolve(SQUASH)
    with pytest.raises(Damaged):
        deriver.generate(image)


def test_other_bytes_in_a_small_image_are_found_before_the_first_byte(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    spoil(place.blob(SMALL.layers[0]))
    deriver = place.deriver()
    image = deriver.resolve(ROOTFS)
    with pytest.raises(Damaged):
        deriver.generate(image)


def test_too_many_entries_are_found_before_the_first_byte(place: Place) -> None:
    place.push("acme/app:1.0", Image([Layer([file(b"%d" % at) for at in range(100)])]))
    place.forget_indexes()
    deriver = Place(place.folder, {"VERBS_MAX_ENTRIES": 50}).deriver()
    image = deriver.resolve(ROOTFS)
    with pytest.raises(TooLarge, match="VERBS_MAX_ENTRIES"):
        deriver.generate(image)


# --- In the middle ----------------------------------------------------------------------------------------------------


def test_other_bytes_at_the_end_of_an_indexed_layer_end_the_stream(place: Place) -> None:
    place.push("acme/app:1.0", LARGE)
    spoil(place.blob(LARGE.layers[0]))
    deriver = place.deriver()
    stream = deriver.generate(deriver.resolve(ROOTFS))
    assert len(next(stream.chunks)) > 0
    with pytest.raises(Damaged):
        list(stream.chunks)
    assert place.derived() == []


def test_who_leaves_early_leaves_nothing_behind(place: Place) -> None:
    place.push("acme/app:1.0", LARGE)
    deriver = place.deriver()
    stream = deriver.generate(deriver.resolve(SQUASH))
    next(stream.chunks)
    stream.chunks.close()
    assert place.files() == place.files(without_derived=True)


def test_who_leaves_before_the_first_byte_leaves_nothing_behind(place: Place) -> None:
    place.push("acme/app:1.0", LARGE)
    deriver = place.deriver()
    deriver.generate(deriver.resolve(SQUASH)).chunks.close()
    assert place.files() == place.files(without_derived=True)


# --- Sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["aci", "rootfs", "squash"])
def test_the_planned_size_is_what_comes(place: Place, verb: str) -> None:
    place.push("acme/app:1.0", LARGE)
    deriver = place.deriver()
    wish = Wish(verb, "acme", "app", "1.0", compression=Compression.NONE)
    planned = deriver.planned_size(deriver.resolve(wish))
    assert planned == len(made(deriver, wish))


def test_no_size_is_planned_where_a_layer_would_have_to_be_read(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver = place.deriver()
    assert deriver.planned_size(deriver.resolve(SQUASH)) is None
    place.forget_indexes()
    assert deriver.planned_size(deriver.resolve(ROOTFS)) is None


def spoil(blob: Path) -> None:
    """Change the last byte of a file: its length, and all that is read before, stay as they were."""
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
