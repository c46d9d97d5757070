"""Deriving, without HTTP: what is in a key, what is found before the first byte, and how large it will be."""

import hashlib
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data.registry import RepositoryNotFound
from data.storage.base import BlobNotFound
from endpoints.derive import Deriver, VerbUnavailable, Wish
from endpoints.image import BlobCutShort
from formats.formatter import InvalidOption
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from util.compression import Compression
from util.problem import Damaged, TooLarge

SMALL = Image([Layer([file(b"etc/hostname", b"here\n")])])
NOISE = os.urandom(4 << 20)
RUNNABLE = Image(
    [
        Layer([file(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"), file(b"etc/resolv.conf", b"here\n")]),
        Layer([file(b"noise", os.urandom(1 << 20))]),
    ],
    run={"Cmd": ["/bin/true"], "User": "root"},
)
LARGE = Image([Layer([file(b"noise", NOISE)]), Layer([file(b"etc/hostname", b"here\n")])])
SQUASH = Wish("squash", "acme", "app", "1.0")
ROOTFS = Wish("rootfs", "acme", "app", "1.0")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def made(deriver: Deriver, wish: Wish) -> bytes:
    return b"".join(deriver.generate(deriver.resolve(wish)).chunks)


@pytest.mark.parametrize(
    ("verb", "compression", "extension"),
    [
        ("rootfs", Compression.NONE, ".tar"),
        ("squash", Compression.ZSTD, ".tar.zst"),
        ("aci", Compression.GZIP, ".aci"),
        ("aci", Compression.NONE, ".aci"),
        ("oci", Compression.NONE, ".oci.tar"),
        ("oci", Compression.GZIP, ".oci.tar"),
        ("oci", Compression.ZSTD, ".oci.tar"),
        ("ext4", Compression.NONE, ".ext4"),
        ("ext4", Compression.GZIP, ".ext4.gz"),
    ],
)
def test_a_name_tells_of_the_compression_unless_it_means_one(
    place: Place, verb: str, compression: Compression, extension: str
) -> None:
    place.push("acme/app:1.0", SMALL)
    image = place.deriver().resolve(replace(SQUASH, verb=verb, compression=compression))
    assert image.file_name == f"acme_app_1.0-linux-amd64{extension}"


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


def test_another_version_of_the_program_that_a_format_needs_has_new_keys(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver, keys = place.deriver(), set()
    for program in (None, "mkdisk 1.0", "mkdisk 1.1"):
        monkeypatch.setattr(type(deriver.resolve(SQUASH).formatter), "program", program)
        keys.add(deriver.resolve(SQUASH).key)
    assert len(keys) == 3


def test_a_format_that_cannot_be_made_here_is_told_to_those_who_may_read_the_image(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver = place.deriver()
    monkeypatch.setattr(type(deriver.resolve(SQUASH).formatter), "unavailable", "there is no mkdisk")
    with pytest.raises(VerbUnavailable, match="squash cannot be made here: there is no mkdisk"):
        deriver.resolve(SQUASH)
    with pytest.raises(RepositoryNotFound):
        deriver.resolve(replace(SQUASH, repository="absent"))


def test_the_default_compression_and_the_same_one_asked_for_share_a_key(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver = place.deriver()
    assert deriver.resolve(SQUASH).key == deriver.resolve(replace(SQUASH, compression=Compression.GZIP)).key


def test_an_option_is_in_the_key_where_it_is_not_as_by_default(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    deriver, wish = place.deriver(), replace(SQUASH, verb="ext4")
    images = [deriver.resolve(replace(wish, options={"spare": each})) for each in ("1G", "1024M", "2G", "64M")]
    gib, same, more, default = (image.key for image in images)
    assert gib == same
    assert len({gib, more, default}) == 3
    assert default == deriver.resolve(wish).key
    assert len({image.source.image_id for image in images}) == 3


def test_a_key_without_options_stays_as_it_was_before_there_were_any(place: Place) -> None:
    place.push("acme/app:1.0", SMALL)
    image = place.deriver().resolve(replace(SQUASH, verb="ext4"))
    identity = {
        "manifest": str(image.source.manifest_digest),
        "verb": "ext4",
        "revision": 1,
        "host": image.source.host,
        "url_scheme": image.source.url_scheme,
        "namespace": "acme",
        "repository": "app",
        "tag": "1.0",
        "platform": "linux/amd64",
        "compression": "none",
        "compression_revision": "",
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    assert image.key == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(("verb", "options"), [("ext4", {"spare": "lots"}), ("squash", {"spare": "1G"})])
def test_an_option_that_is_wrong_is_told_before_anything_is_looked_up(
    place: Place, verb: str, options: dict[str, str]
) -> None:
    with pytest.raises(InvalidOption, match="spare"):
        place.deriver().resolve(Wish(verb, "acme", "absent", "1.0", options=options))


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


@pytest.mark.parametrize("verb", ["aci", "bundle", "ext4", "incus", "rootfs", "squash", "wsl"])
def test_the_planned_size_is_what_comes(place: Place, verb: str) -> None:
    place.push("acme/app:1.0", RUNNABLE)
    place.deriver().generate(place.deriver().resolve(ROOTFS)).chunks.close()  # indexes the layers
    deriver = place.deriver()
    wish = Wish(verb, "acme", "app", "1.0", compression=Compression.NONE)
    planned = deriver.planned_size(deriver.resolve(wish))
    assert planned == len(made(deriver, wish))


def test_what_a_format_changes_in_the_root_file_system_is_in_its_bytes_and_in_no_other_s(place: Place) -> None:
    place.push("acme/app:1.0", RUNNABLE)
    listed: dict[str, set[str]] = {}
    for verb in ("rootfs", "wsl"):
        content = made(place.deriver(), Wish(verb, "acme", "app", "1.0", compression=Compression.NONE))
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            listed[verb] = {*tar.getnames()}
    assert listed["rootfs"] - listed["wsl"] == {"etc/resolv.conf"}
    assert listed["wsl"] - listed["rootfs"] == {"etc/wsl.conf", "etc/wsl-distribution.conf"}


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
