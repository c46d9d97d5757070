"""The analysis of images in a registry: over HTTP, each answer held against the API's document, and as a command."""

import base64
import json
import logging
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from endpoints.making import MAKINGS
from test.images import Image, Layer, Layout
from test.layers import Entry, directory, file, hardlink, layer, opaque, whiteout
from test.people import PASSWORD, SECRET, People
from test.place import Place
from test.test_admin import check, schema
from test.test_commands import PROGRAM, environment, failure, run

BASE = [directory(b"etc"), file(b"etc/big", b"1" * 3000), file(b"etc/small", b"1"), file(b"etc/\xff\x1b[1m", b"22")]
MIDDLE = [file(b"etc/big", b"2" * 5000), hardlink(b"etc/link", b"etc/big"), whiteout(b"etc/none"), opaque(b"new")]
TOP = [whiteout(b"etc/big"), whiteout(b"etc/link"), whiteout(b"etc/\xff\x1b[1m"), file(b"etc/small", b"3", mode=0o600)]


def image(*stack: list[Entry], platform: str = "linux/amd64") -> Image:
    return Image([Layer(entries) for entries in stack], platform=platform)


UNTIDY = image(BASE, MIDDLE, TOP)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    place.push("acme/app:1.0", UNTIDY)
    place.push("acme/deep/app:1.0", UNTIDY)
    place.push("acme/private:1.0", UNTIDY, private=True)
    place.push("acme/both:1.0", image(BASE), image(BASE, TOP, platform="linux/arm64"))
    place.push("acme/tidy:1.0", image(BASE))
    place.push_artifact("acme/chart:1.0")
    many = [file(b"f%03d" % at, b"1" * at) for at in range(50)]
    place.push("acme/many:1.0", image(many, [whiteout(entry.name) for entry in many]))
    idle = [whiteout(b"none%d" % at) for at in range(30)]
    place.push("acme/idle:1.0", image(BASE, idle))
    return place


@pytest.fixture(scope="module")
def app(place: Place) -> Flask:
    return place.app()


def ask(app: Flask, path: str, **headers: str) -> TestResponse:
    """Ask, and hold the answer against the document."""
    client = app.test_client()
    url = f"/api/v1/analysis/{path}"
    answer = client.get(url, headers=headers)
    document = client.get("/api/v1/openapi.json").get_json()
    check(document, "GET", url.replace("/deep/", "/deep%2F"), answer)
    return answer


def shown(app: Flask, path: str) -> Any:
    answer = ask(app, path)
    assert answer.status_code == 200, answer.data
    return answer.get_json()


def error(app: Flask, path: str, status: int, **headers: str) -> tuple[str, str]:
    answer = ask(app, path, **headers)
    assert answer.status_code == status, answer.data
    (told,) = answer.get_json()["errors"]
    return told["code"], told["message"]


# --- What is told -----------------------------------------------------------------------------------------------------


def test_an_image_is_told_by_layers_and_paths(app: Flask, place: Place) -> None:
    told = shown(app, "acme/app/1.0")
    tars, blobs = ([getattr(each, what) for each in UNTIDY.layers] for what in ("content", "blob"))
    squashed = app.test_client().get("/c1/rootfs/acme/app/1.0").data
    assert told["squashed_bytes"] == len(squashed)
    assert told["tar_bytes"] == sum(map(len, tars))
    assert told["saved_bytes"] == told["tar_bytes"] - told["squashed_bytes"]
    assert told["saved_percent"] == pytest.approx(100 * told["saved_bytes"] / told["tar_bytes"], abs=0.01)
    assert told["stored_bytes"] == sum(map(len, blobs))
    assert (told["bytes"], told["kept_bytes"], told["shadowed_bytes"]) == (8004, 1, 8003)
    assert told["efficiency"] == pytest.approx(1 / 8004, abs=1e-6)
    assert (told["namespace"], told["repository"], told["reference"]) == ("acme", "app", "1.0")
    assert told["platform"] == "linux/amd64"
    base, middle, top = told["layers"]
    assert [each["number"] for each in told["layers"]] == [1, 2, 3]
    assert [each["created_by"] for each in told["layers"]] == ["layer 0", "layer 1", "layer 2"]
    assert [each["stored_bytes"] for each in told["layers"]] == list(map(len, blobs))
    assert [each["tar_bytes"] for each in told["layers"]] == list(map(len, tars))
    assert {"entries": 4, "files": 3, "bytes": 3003, "kept_files": 0, "kept_bytes": 0}.items() <= base.items()
    assert base["shadowed"] == [
        {"by": 2, "how": "replaced", "files": 1, "bytes": 3000},
        {"by": 3, "how": "whiteout", "files": 1, "bytes": 2},
        {"by": 3, "how": "rewritten", "files": 1, "bytes": 1},
    ]
    assert middle["shadowed"] == [{"by": 3, "how": "whiteout", "files": 1, "bytes": 5000}]
    assert (middle["whiteouts"], middle["idle_whiteouts"]) == (2, 2)
    assert middle["idle"] == ["etc/.wh.none", "new/.wh..wh..opq"]
    assert (top["kept_bytes"], top["shadowed"], top["idle"]) == (1, [], [])
    assert told["wasted_paths"] == 3
    assert told["wasted"] == [
        {"path": "etc/big", "bytes": 8000, "times": 2, "layers": [1, 2]},
        {"path": "etc/\\xff\x1b[1m", "bytes": 2, "times": 1, "layers": [1]},
        {"path": "etc/small", "bytes": 1, "times": 2, "layers": [1, 3]},
    ]


def test_an_image_is_found_by_digest_and_in_nested_repositories_too(app: Flask) -> None:
    told = shown(app, "acme/app/1.0")
    assert shown(app, f"acme/app/{told['manifest_digest']}") == told | {"reference": told["manifest_digest"]}
    assert shown(app, "acme/deep/app/1.0") == told | {"repository": "deep/app"}


def test_an_image_of_several_platforms_is_told_for_one(app: Flask) -> None:
    assert len(shown(app, "acme/both/1.0")["layers"]) == 1
    told = shown(app, "acme/both/1.0?platform=linux/arm64")
    assert (told["platform"], len(told["layers"])) == ("linux/arm64", 2)
    assert "linux/arm64" in error(app, "acme/both/1.0?platform=linux/s390x", 404)[1]


def test_twenty_are_told_or_all(app: Flask) -> None:
    told = shown(app, "acme/many/1.0")
    assert (told["wasted_paths"], len(told["wasted"])) == (49, 20)
    assert told["wasted"][0]["path"] == "f049"
    assert len(shown(app, "acme/many/1.0?all=true")["wasted"]) == 49
    assert shown(app, "acme/many/1.0?all=false") == told
    (_, upper) = shown(app, "acme/idle/1.0")["layers"]
    assert (upper["idle_whiteouts"], len(upper["idle"])) == (30, 20)
    assert len(shown(app, "acme/idle/1.0?all=true")["layers"][1]["idle"]) == 30


def test_a_history_of_another_length_says_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)
    layout = Layout(tmp_path / "layout")
    blob = layer(file(b"a", b"1"))
    whole = layout.blob(blob, "application/vnd.oci.image.layer.v1.tar")
    config = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [whole["digest"]] * 2},
        "history": [{"created_by": "one"}, {"created_by": "none", "empty_layer": True}],
    }
    manifest = {
        "schemaVersion": 2,
        "config": layout.document(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [whole, whole],
    }
    place._import(
        layout, layout.document(manifest, "application/vnd.oci.image.manifest.v1+json"), "acme/app:1.0", private=False
    )
    told = shown(place.app(), "acme/app/1.0")
    assert [each["created_by"] for each in told["layers"]] == [None, None]
    assert told["stored_bytes"] == len(blob)
    assert told["tar_bytes"] == 2 * len(blob)
    assert told["layers"][0]["shadowed"] == [{"by": 2, "how": "rewritten", "files": 1, "bytes": 1}]


def test_layers_that_are_not_indexed_are_indexed_first(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", UNTIDY)
    place.forget_indexes()
    app = place.app()
    told = shown(app, "acme/app/1.0")
    place.blob(UNTIDY.layers[0]).write_bytes(bytes(len(UNTIDY.layers[0].blob)))  # nobody reads it again
    assert shown(app, "acme/app/1.0") == told


# --- What is refused --------------------------------------------------------------------------------------------------


def test_what_is_asked_wrongly_is_a_400(app: Flask) -> None:
    assert "allowed: true, false" in error(app, "acme/app/1.0?all=yes", 400)[1]
    assert "'limit' is not a parameter; allowed: platform, all" in error(app, "acme/app/1.0?limit=5", 400)[1]
    assert "given 2 times" in error(app, "acme/app/1.0?all=true&all=true", 400)[1]
    assert error(app, "acme/app/1.0?platform=amd64", 400)[0] == "QUERY_INVALID"


def test_what_is_not_there_is_a_404_and_what_is_no_image_a_415(app: Flask) -> None:
    assert error(app, "acme/app/9.9", 404)[0] == "TAG_UNKNOWN"
    assert error(app, "acme/chart/1.0", 415)[0] == "NOT_AN_IMAGE"


def test_layers_that_are_missing_or_do_not_go_together_are_told(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/dangling:1.0", image([hardlink(b"a", b"b")]))
    place.push("acme/app:1.0", UNTIDY)
    app = place.app()
    assert error(app, "acme/dangling/1.0", 422)[0] == "LAYER_HARD_LINK_DANGLING"
    place.blob(UNTIDY.layers[1]).unlink()
    assert error(app, "acme/app/1.0", 502)[0] == "BLOB_NOT_FOUND"


def test_a_private_image_is_for_who_may_read_it(tmp_path: Path) -> None:
    place = Place(tmp_path, {"DATABASE_SECRET_KEY": SECRET})
    app = place.app()
    people = People(place.engine)
    people.organization("acme")
    people.user("reader")
    people.user("stranger")
    people.repository("acme/private", {"reader": "read"}, public=False)
    place.push("acme/private:1.0", UNTIDY)
    place.push("acme/app:1.0", UNTIDY)

    def login(who: str) -> str:
        return "Basic " + base64.b64encode(f"{who}:{PASSWORD}".encode()).decode()

    assert error(app, "acme/private/1.0", 401)[0] == "UNAUTHORIZED"
    denied = error(app, "acme/private/1.0", 403, Authorization=login("stranger"))
    assert denied == ("DENIED", "acme/private does not exist or is not yours to read")
    assert ask(app, "acme/private/1.0", Authorization=login("reader")).status_code == 200
    token = app.extensions["registry_verbs"].tokens.create("ci")
    assert ask(app, "acme/private/1.0", Authorization=f"Bearer {token}").status_code == 200
    assert error(app, "acme/private/1.0", 401, Authorization="Bearer rvt_wrong")[0] == "UNAUTHORIZED"
    assert error(app, "acme/app/1.0", 401, Authorization="Bearer rvt_wrong")[0] == "UNAUTHORIZED"


def test_as_many_as_may_be_are_looked_at_at_a_time(tmp_path: Path) -> None:
    place = Place(tmp_path, {"VERBS_MAX_MAKINGS": 1})
    place.push("acme/app:1.0", UNTIDY)
    app = place.app()
    with app.extensions[MAKINGS].occupied():
        answer = ask(app, "acme/app/1.0")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
    assert ask(app, "acme/app/1.0").status_code == 200
    assert error(app, "acme/app/9.9", 404)[0] == "TAG_UNKNOWN"
    assert ask(app, "acme/app/1.0").status_code == 200


def test_it_is_written_down_who_looked(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "registry_verbs.audit"):
        ask(app, "acme/app/1.0").close()
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "registry_verbs.audit"]
    expected = {"verb": "analysis", "namespace": "acme", "repository": "app", "tag": "1.0", "status": 200}
    assert expected.items() <= line.items()
    counted = 'registry_verbs_requests_total{how="none",status="200",verb="analysis"}'
    assert counted in app.test_client().get("/metrics").text


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_command_says_the_same_as_json(place: Place, app: Flask) -> None:
    done = run(place, "analyze", "acme/app:1.0", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == shown(app, "acme/app/1.0")
    document = app.test_client().get("/api/v1/openapi.json").get_json()
    schema(document, "#/components/schemas/Analysis").validate(json.loads(done.stdout))
    done = run(place, "analyze", "acme/many:1.0", "--json", "--all")
    assert json.loads(done.stdout) == shown(app, "acme/many/1.0?all=true")
    done = run(place, "analyze", "acme/both:1.0", "--json", "--platform", "linux/arm64")
    assert json.loads(done.stdout) == shown(app, "acme/both/1.0?platform=linux/arm64")


def test_the_command_has_a_table_for_people(place: Place) -> None:
    done = run(place, "analyze", "acme/app:1.0")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines[0].startswith("acme/app:1.0  linux/amd64  sha256:")
    text = "\n".join(lines)
    for said in (
        "2.9 KiB in 1 file: replaced by layer 2",
        "1 B in 1 file: rewritten, of the same size and time, by layer 3",
        "4.9 KiB in 1 file: deleted by layer 3",
        "2 of 2 whiteouts hide nothing: etc/.wh.none, new/.wh..wh..opq",
        "   7.8 KiB      2  1,2           etc/big",
        "       2 B      1  1             etc/\\xff\\x1b[1m",
        "files       7.8 KiB, of which 7.8 KiB are not in the image",
        "efficiency  0.0 % (as dive counts)",
    ):
        assert said in text, said
    assert lines[3].endswith("  layer 0")
    assert "\x1b" not in text


def test_the_table_is_short_unless_all_is_wanted(place: Place) -> None:
    text = run(place, "analyze", "acme/many:1.0").stdout.decode()
    assert "and 29 more (--all)" in text
    assert "f029" not in text
    text = run(place, "analyze", "acme/many:1.0", "--all").stdout.decode()
    assert "f001" in text
    assert "more (--all)" not in text


def test_an_image_without_waste_has_no_table_of_it(place: Place) -> None:
    text = run(place, "analyze", "acme/tidy:1.0").stdout.decode()
    assert "path" not in text
    assert "efficiency  100.0 %" in text


def test_on_a_terminal_lines_are_as_long_as_it_is_wide(place: Place) -> None:
    controller, terminal = pty.openpty()
    command = [*PROGRAM, "analyze", "acme/app:1.0"]
    with subprocess.Popen(command, env=environment(place, COLUMNS="60"), stdout=terminal) as running:
        os.close(terminal)
        text = bytearray()
        while chunk := _read(controller):
            text += chunk
    os.close(controller)
    assert running.returncode == 0
    lines = text.decode().splitlines()
    assert max(map(len, lines)) == 60
    assert any(line.endswith("…") for line in lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_the_command_reads_private_images_and_fails_in_one_line(place: Place) -> None:
    assert run(place, "analyze", "acme/private:1.0").returncode == 0
    assert "9.9" in failure(run(place, "analyze", "acme/app:9.9"))
    assert run(place, "analyze", "acme").returncode == 2
    assert b"registry-verbs analyze acme/app:1.0" in run(place, "analyze", "--help").stdout
