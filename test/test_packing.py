"""What an image is as one layer: found out once, known to all who ask, and forgotten where it turns out otherwise."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from data.owntables import DatabaseUnavailable
from data.packedlayers import PackedLayers
from endpoints.derive import DerivedImage, Deriver, Wish
from endpoints.packing import Packing
from endpoints.wire import ConnectionCut
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import storing_is_waited_for
from util.compression import Compression
from util.digest import Digest
from util.packedlayer import LayerDiffers, PackedLayer, packed
from util.streamlayerformat import StreamLayerMerger

IMAGE = Image(
    [Layer([file(b"noise", os.urandom(1 << 20))]), Layer([file(b"etc/hostname", b"here\n")])], run={"Cmd": ["/x"]}
)
OCI = Wish("oci", "acme", "app", "1.0")
URL = "/c1/oci/acme/app/1.0"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("filled"))
    place.push("acme/app:1.0", IMAGE)
    place.push("acme/app:2.0", IMAGE)
    place.push("acme/app:other", Image([Layer([file(b"other", b"one")])]))
    return place.folder / "var"


@pytest.fixture
def place(filled: Path, tmp_path: Path) -> Place:
    shutil.copytree(filled, tmp_path / "var")
    return Place(tmp_path)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Compression]:
    """Return what images have been packed in only to find out what comes."""
    done: list[Compression] = []
    plain = packed

    def counted(tar: Iterator[bytes], compression: Compression) -> PackedLayer:
        done.append(compression)
        return plain(tar, compression)

    monkeypatch.setattr("endpoints.packing.packed", counted)
    return done


def made(deriver: Deriver, wish: Wish = OCI) -> bytes:
    stream = deriver.generate(deriver.resolve(wish))
    content = b"".join(stream.chunks)
    assert stream.size == len(content)
    return content


def known(place: Place, wish: Wish = OCI) -> PackedLayer:
    found = Packing(place.services()).known(place.deriver().resolve(wish))
    assert found is not None
    return found


# --- Found out once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", list(Compression))
def test_the_first_alone_takes_two_passes_and_all_are_the_same(
    place: Place, passes: list[Compression], compression: Compression
) -> None:
    wish = replace(OCI, compression=compression)
    first = made(place.deriver(), wish)
    assert passes == [compression]
    assert made(place.deriver(), wish) == first  # another process, as far as anybody can tell
    assert passes == [compression]


def test_it_is_known_whatever_the_image_is_called(place: Place, passes: list[Compression]) -> None:
    made(place.deriver())
    made(place.deriver(), replace(OCI, reference="2.0"))
    made(Place(place.folder, {"SERVER_HOSTNAME": "other.example.com"}).deriver())
    assert passes == [Compression.GZIP]


def test_another_image_or_compressor_is_found_out_for_itself(
    place: Place, passes: list[Compression], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(place.deriver())
    made(place.deriver(), replace(OCI, reference="other"))
    made(place.deriver(), replace(OCI, compression=Compression.ZSTD))
    assert passes == [Compression.GZIP, Compression.GZIP, Compression.ZSTD]
    monkeypatch.setattr("endpoints.packing.compression_revision", lambda _: "gzip of tomorrow")
    made(place.deriver())
    assert passes[3:] == [Compression.GZIP]
    monkeypatch.setattr("endpoints.packing.RootfsTar.revision", 99)
    made(place.deriver())
    assert passes[4:] == [Compression.GZIP]


def test_in_the_second_pass_what_it_unwraps_to_is_not_hashed_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(place.deriver())
    monkeypatch.delattr(StreamLayerMerger, "get_generator")
    assert made(place.deriver()) == first


def test_the_size_is_known_from_then_on(place: Place) -> None:
    image = place.deriver().resolve(OCI)
    assert place.deriver().planned_size(image) is None
    assert place.deriver().plan(image) is None
    content = made(place.deriver())
    assert place.deriver().planned_size(image) == len(content)
    planned = place.deriver().plan(image)
    assert planned is not None
    assert planned.size == len(content)
    assert not planned.needs_all(0, 1000)
    assert planned.needs_all(0, 10_000)
    assert b"".join(planned.stream(0, 1000).chunks) == content[:1000]


def test_other_formats_ask_for_nothing(place: Place, passes: list[Compression]) -> None:
    made(place.deriver(), replace(OCI, verb="rootfs"))
    assert passes == []
    image = place.deriver().resolve(replace(OCI, verb="squash"))
    assert place.deriver().planned_size(image) is None
    assert image.wrapping is Compression.GZIP


def test_an_image_of_no_layers_is_packed_too(place: Place) -> None:
    place.push("acme/app:empty", Image())
    wish = replace(OCI, reference="empty")
    assert made(place.deriver(), wish) == made(place.deriver(), wish)


# --- Other bytes than were announced ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"digest": Digest.of(b"other")}, {"size": 5000}, {"size": 9 << 20}], ids=["digest", "less", "more"]
)
def test_what_comes_out_otherwise_is_cut_and_found_out_anew(
    place: Place, passes: list[Compression], changes: dict[str, Any]
) -> None:
    right = made(place.deriver())
    image, layer = place.deriver().resolve(OCI), known(place)
    Packing(place.services()).remember(image, replace(layer, **changes))
    received = bytearray()
    with pytest.raises(LayerDiffers):
        received.extend(chain.from_iterable(place.deriver().generate(image).chunks))
    assert len(received) < len(right)
    assert made(place.deriver()) == right
    assert known(place) == layer
    assert len(passes) == 2


def test_what_another_has_found_out_since_is_not_forgotten(place: Place) -> None:
    made(place.deriver())
    image, layer = place.deriver().resolve(OCI), known(place)
    Packing(place.services()).remember(image, replace(layer, digest=Digest.of(b"other")))
    stream = place.deriver().generate(image)
    Packing(place.services()).remember(image, layer)
    with pytest.raises(LayerDiffers):
        list(stream.chunks)
    assert known(place) == layer


def test_a_layer_that_breaks_is_not_remembered(place: Place) -> None:
    blob = place.blob(IMAGE.layers[0])
    sound = blob.read_bytes()
    blob.write_bytes(sound[:-9] + bytes(9))
    with pytest.raises(Exception, match="layer sha256:"):
        made(place.deriver())
    assert Packing(place.services()).known(place.deriver().resolve(OCI)) is None
    blob.write_bytes(sound)
    assert made(place.deriver())


# --- Without a database -----------------------------------------------------------------------------------------------


def down(*_: object, **__: object) -> None:
    raise DatabaseUnavailable("it is down")


def test_without_a_database_it_is_found_out_each_time(
    place: Place, passes: list[Compression], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("find", "add", "forget"):
        monkeypatch.setattr(PackedLayers, name, down)
    assert made(place.deriver()) == made(place.deriver())
    assert len(passes) == 2
    assert place.deriver().planned_size(place.deriver().resolve(OCI)) is None
    assert "oci of acme/app:1.0 is as one layer is not remembered: it is down" in caplog.text


def test_what_cannot_be_forgotten_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made(place.deriver())
    image, layer = place.deriver().resolve(OCI), known(place)
    Packing(place.services()).remember(image, replace(layer, digest=Digest.of(b"other")))
    monkeypatch.setattr(PackedLayers, "forget", down)
    with caplog.at_level(logging.WARNING), pytest.raises(LayerDiffers):
        made(place.deriver())
    assert "oci of acme/app:1.0 is as one layer is not forgotten: it is down" in caplog.text


def test_a_read_only_registry_uses_what_is_known_and_changes_nothing(place: Place, passes: list[Compression]) -> None:
    readonly = Place(place.folder, {"REGISTRY_STATE": "readonly"})
    first = made(readonly.deriver())
    assert Packing(place.services()).known(place.deriver().resolve(OCI)) is None
    assert made(place.deriver()) == first
    assert made(readonly.deriver()) == first
    assert len(passes) == 2
    wrong = replace(known(place), digest=Digest.of(b"other"))
    Packing(place.services()).remember(place.deriver().resolve(OCI), wrong)
    with pytest.raises(LayerDiffers):
        made(readonly.deriver())
    assert known(place) == wrong


# --- Over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every image be stored before the end of its bytes."""
    storing_is_waited_for(monkeypatch)


@pytest.fixture
def client(place: Place) -> FlaskClient:
    return place.app().test_client()


def content_of(place: Place) -> bytes:
    """Return the archive, from a place where nothing is kept."""
    return made(Place(place.folder, {"REGISTRY_STATE": "readonly"}).deriver())


def test_it_comes_with_its_length_the_first_time(place: Place, client: FlaskClient) -> None:
    head = client.head(URL)
    assert "Content-Length" not in head.headers
    whole = content_of(place)
    answer = client.get(URL)
    assert answer.data == whole
    assert (answer.content_length, answer.headers["Accept-Ranges"]) == (len(whole), "bytes")
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert 'filename="acme_app_1.0-linux-amd64.oci.tar"' in answer.headers["Content-Disposition"]


def test_once_it_is_known_a_head_and_a_part_are_answered_without_making_it(place: Place, client: FlaskClient) -> None:
    whole = made(place.deriver())
    head = client.head(URL)
    assert (head.content_length, head.headers["Accept-Ranges"]) == (len(whole), "bytes")
    part = client.get(URL, headers={"Range": "bytes=0-999"})
    assert (part.status_code, part.data) == (206, whole[:1000])
    assert part.headers["Content-Range"] == f"bytes 0-999/{len(whole)}"
    assert place.derived() == []
    beyond = client.get(URL, headers={"Range": f"bytes={len(whole)}-"})
    assert beyond.status_code == 416


@pytest.mark.parametrize("begin", [0, 100, 500_000])
def test_a_part_of_the_layer_has_it_made(place: Place, client: FlaskClient, begin: int) -> None:
    whole = made(place.deriver())
    part = client.get(URL, headers={"Range": f"bytes={begin}-"})
    assert (part.status_code, part.data) == ((206, whole[begin:]) if begin else (206, whole))
    assert len(place.derived()) == 1


def test_a_part_of_a_layer_that_is_not_compressed_is_not_made(place: Place, client: FlaskClient) -> None:
    whole = made(place.deriver(), replace(OCI, compression=Compression.NONE))
    part = client.get(f"{URL}?compression=none", headers={"Range": "bytes=500000-500099"})
    assert (part.status_code, part.data) == (206, whole[500_000:500_100])
    assert place.derived() == []


def test_what_comes_out_otherwise_is_kept_by_nobody(place: Place, client: FlaskClient) -> None:
    whole = made(place.deriver())
    image = place.deriver().resolve(OCI)
    Packing(place.services()).remember(image, replace(known(place), digest=Digest.of(b"other")))
    ask: Callable[[], Any] = lambda: client.get(URL).data  # noqa: E731
    with pytest.raises(ConnectionCut):
        ask()
    assert [each for each in place.files() if "derived" in str(each)] == []
    assert ask() == whole


def test_a_name_that_docker_does_not_allow_is_told_before_the_first_byte(place: Place) -> None:
    client = Place(place.folder, {"SERVER_HOSTNAME": "registry_1"}).app().test_client()
    answer = client.get(URL)
    assert answer.status_code == 422
    assert "registry_1" in answer.text


def test_the_checksum_is_that_of_the_archive(place: Place, client: FlaskClient) -> None:
    whole = client.get(URL).data
    line = client.get(f"{URL}.sha256").text
    assert line == f"{Digest.of(whole).hex}  acme_app_1.0-linux-amd64.oci.tar\n"


def test_the_key_is_of_the_compression_within(place: Place) -> None:
    def image(compression: Compression | None) -> DerivedImage:
        return place.deriver().resolve(replace(OCI, compression=compression))

    assert len({image(each).key for each in Compression}) == 3
    assert image(None).key == image(Compression.GZIP).key
