"""The service as it runs: `registry-verbs serve`, asked by clients that we did not write."""

import contextlib
import http.client
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.server import Running, curl, served
from test.waiting import PATIENT, eventually

SOUND = Image([Layer([file(b"noise", os.urandom(4 << 20))]), Layer([file(b"etc/hostname", b"sound\n")])])
# Larger than what compression holds back: the first bytes are out before the last ones are read.
SPOILT = Image([Layer([file(b"noise", os.urandom(32 << 20))]), Layer([file(b"etc/hostname", b"spoilt\n")])])
MISSING = Image([Layer([file(b"etc/hostname", b"missing\n")])])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = Place(tmp_path_factory.mktemp("place"))
    place.push("acme/sound:1.0", SOUND)
    place.push("acme/spoilt:1.0", SPOILT)
    place.push("acme/missing:1.0", MISSING)
    content = place.blob(SPOILT.layers[0]).read_bytes()
    place.blob(SPOILT.layers[0]).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    place.blob(MISSING.layers[0]).unlink()
    with served(place, program=PATIENT) as running:
        yield running


@pytest.mark.parametrize("verb", ["squash", "aci", "rootfs"])
def test_curl_downloads_an_image_under_its_own_name(running: Running, tmp_path: Path, verb: str) -> None:
    done = subprocess.run(
        ["curl", "-sfOJL", f"{running.url}/c1/{verb}/acme/sound/1.0"], cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0
    (name,) = os.listdir(tmp_path)
    assert name.startswith("acme_sound_1.0-linux-amd64.")
    with tarfile.open(tmp_path / name) as tar:
        assert tar.getnames()


def test_the_second_download_is_the_same(running: Running) -> None:
    first, second = (curl("-f", f"{running.url}/c1/squash/acme/sound/1.0?compression=zstd") for _ in range(2))
    assert first.stdout == second.stdout != b""


def test_a_download_is_taken_up_where_it_broke_off(running: Running, tmp_path: Path) -> None:
    url = f"{running.url}/c1/squash/acme/sound/1.0"
    whole = curl("-f", url).stdout
    part = tmp_path / "part"
    part.write_bytes(whole[:1_000_000])
    assert curl("-f", "-C", "-", "-o", str(part), url).returncode == 0
    assert part.read_bytes() == whole


def test_a_head_has_the_length_of_what_comes(running: Running) -> None:
    url = f"{running.url}/c1/rootfs/acme/sound/1.0"
    head = curl("-f", "--head", url).stdout.decode().lower()
    assert f"content-length: {len(curl('-f', url).stdout)}\r\n" in head


@pytest.mark.parametrize("query", ["compression=none", "compression=gzip", "compression=zstd"])
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
def test_curl_takes_no_spoilt_image_for_a_whole_one(running: Running, query: str, version: str) -> None:
    done = curl("-f", version, f"{running.url}/c1/squash/acme/spoilt/1.0?{query}")
    assert done.returncode in {18, 56}  # partial file; failure in receiving
    assert done.stdout
    assert not kept_of(running, "spoilt")


def test_python_takes_no_spoilt_image_for_a_whole_one(running: Running) -> None:
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", "/c1/squash/acme/spoilt/1.0")
        with pytest.raises(http.client.IncompleteRead):
            connection.getresponse().read()


def test_what_is_found_before_the_first_byte_is_a_clear_answer(running: Running) -> None:
    done = curl("-w", "%{http_code}", f"{running.url}/c1/squash/acme/missing/1.0")
    body, status = done.stdout[:-3], done.stdout[-3:]
    assert status == b"502"
    (error,) = json.loads(body)["errors"]
    assert error["code"].startswith("BLOB_")


def test_who_leaves_early_has_the_image_made_and_leaves_nothing_half_made(running: Running) -> None:
    url = "/c1/aci/acme/sound/1.0?compression=none"
    before = running.place.derived()
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", url)
        connection.getresponse().read(1000)
    # The row comes last.
    eventually(lambda: b"repr-digest" in curl("-f", "--head", f"{running.url}{url}").stdout.lower())
    assert len(running.place.derived()) == len(before) + 1
    assert list(running.place.storage.glob(".parts/*")) == []
    assert b"content-length" in curl("-f", "--head", f"{running.url}{url}").stdout.lower()


def kept_of(running: Running, repository: str) -> bool:
    """Tell whether anything derived of acme/`repository` is kept."""
    url = f"{running.url}/c1/squash/acme/{repository}/1.0"
    heads = [curl("--head", f"{url}?compression={each}").stdout.decode().lower() for each in ("none", "gzip", "zstd")]
    return any("repr-digest" in head for head in heads)


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with served(place) as running:
        assert curl("-f", f"{running.url}/c1/_internal_ping").stdout == b"true"
    assert running.process.returncode == 0
