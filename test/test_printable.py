"""Text from strangers on a terminal: what `printable` escapes, and what commands show of an image that means harm."""

import io
import json
import logging
import re
import subprocess
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from data.owntables import DerivedRow
from endpoints.loglines import OneLine
from test.images import Image, Layer, Layout
from test.layers import file, whiteout
from test.place import Place
from test.test_admincommands import PROGRAM, environment
from util.printable import one_line, printable
from util.problem import Problem

EVIL = "\x1b]0;forged\x07\r\n\x9b31m\x7f\u202eback\u2066\u2028\u200f\ufeff\U000e0001\ttab"
FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]"
)
"""All that a terminal obeys, or that turns text round, but the newline that ends a line of ours."""


@given(st.text(st.characters(exclude_categories=())))
def test_what_comes_out_is_one_line_of_pictures_and_the_same_again(text: str) -> None:
    shown = printable(text)
    assert not FORBIDDEN.search(shown)
    assert "\n" not in shown
    assert all(unicodedata.category(each) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for each in shown)
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 漢字 \\n", "plain ünïcode 漢字 \\n"),
        ("a\x1b[1m\nb", "a\\x1b[1m\\x0ab"),
        ("\x85\u202e\ud800\U000e0001", "\\x85\\u202e\\ud800\\U000e0001"),
    ],
)
def test_escapes_are_those_that_programmers_know(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_joins_lines_and_ends() -> None:
    assert one_line("two\n  lines", most=100) == "two lines"
    assert one_line("two  blanks", most=100) == "two  blanks"
    assert one_line("b" + "x" * 99 + "e", most=100) == "b" + "x" * 74 + "…" + "x" * 24 + "e"
    assert one_line("\x1b" * 2000, most=8) == "\\x1b" * 6 + "…" + "\\x1b" * 2


def test_the_text_of_a_problem_can_be_shown_and_ends() -> None:
    assert not FORBIDDEN.search(str(Problem(f"os is {EVIL}")))
    assert len(str(Problem("9" * 1_000_000))) < 3000


def test_a_log_line_of_a_hostile_value_is_one_of_pictures() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLine("%(message)s"))
    log = logging.getLogger("hostile")
    log.addHandler(handler)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("layer %s", EVIL)
    assert not FORBIDDEN.search(stream.getvalue())
    assert stream.getvalue().count("\n") > 1


# --- Commands ---------------------------------------------------------------------------------------------------------

NAME = EVIL.replace("\x00", "").encode()
KEY = "0" * 64


def hostile(layout: Layout) -> Any:
    """Return the descriptor of an image that says nothing but what a terminal would obey, as far as it can."""
    below, above = Layer([file(b"wasted/" + NAME, b"1" * 100)]), Layer([whiteout(b"wasted/" + NAME), whiteout(NAME)])
    descriptor = layout.image(Image([below, above], run={"User": EVIL, "Entrypoint": [EVIL], "Labels": {EVIL: EVIL}}))
    place = layout.folder / "blobs" / "sha256"
    manifest = json.loads((place / descriptor["digest"].removeprefix("sha256:")).read_bytes())
    config = json.loads((place / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
    config["history"] = [{"created_by": EVIL, "comment": EVIL, "author": EVIL}, {"comment": EVIL}]
    config["author"] = EVIL
    manifest["config"] = layout.document(config, manifest["config"]["mediaType"])
    manifest["annotations"] = {EVIL: EVIL}
    platform = {"os": f"linux{EVIL}", "architecture": EVIL, "variant": EVIL}
    entry = {**layout.document(manifest, manifest["mediaType"]), "platform": platform}
    return layout.document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}, INDEX)


INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Return a place with a hostile image, derived well and not, in rows as an older version might have them."""
    place = Place(tmp_path_factory.mktemp("place"))
    layout = Layout(place.folder / "layout")
    place._import(layout, hostile(layout), "acme/app:1", private=False)
    for verb in ("rootfs", "bundle"):
        run(place, "derive", verb, "acme/app:1", "-o", str(place.folder / verb))
    engine = place.services().own_engine
    with engine.begin() as connection:
        connection.execute(update(DerivedRow).values(platform=f"{EVIL}\n{KEY}  complete", reason=f"{EVIL}\n{KEY}"))
    engine.dispose()
    return place


def run(place: Place, *arguments: str) -> tuple[int, str, str]:
    """Run a command, and return its exit status and what it wrote, with no newline made of anything else."""
    done = subprocess.run([*PROGRAM, *arguments], env=environment(place), capture_output=True, check=False, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


COMMANDS = [
    ("derived", "ls"),
    ("derived", "ls", "--verb", EVIL),
    ("derived", "rm", EVIL, KEY),
    ("analyze", "acme/app:1"),
    ("analyze", "acme/app:1", "--all"),
    ("analyze", "acme/app:1", "--json"),
    ("analyze", f"acme/{EVIL}:1"),
    ("analyze", "acme/app:1", "--platform", EVIL),
    ("derive", "bundle", "acme/app:1", "-o", "/dev/null"),
    ("derive", EVIL, "acme/app:1", "-o", "/dev/null"),
    ("derive", "rootfs", "acme/app:1", "-o", "/dev/null", "--option", EVIL),
    ("import", f"oci:{EVIL}", "acme/app:2"),
    ("formats",),
    ("gc", "--dry-run"),
    ("prime", "acme/app:1", "--verb", "bundle"),
    ("prime", "acme/app:1", "--verb", EVIL),
    ("user", "ls"),
    ("user", "rm", EVIL),
    ("user", "create", EVIL),
    ("org", "ls"),
    ("team", "ls", EVIL),
    ("robot", "ls"),
    ("robot", "ls", EVIL),
    ("repo", "ls"),
    ("repo", "ls", EVIL),
    ("repo", "rm", EVIL),
    ("permission", "ls", "acme/app"),
    ("permission", "ls", EVIL),
    ("admin-token", "ls"),
    ("admin-token", "revoke", EVIL),
    ("unknown" + EVIL,),
    ("derived", "--" + EVIL),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: printable(" ".join(command))[:60])
def test_no_command_shows_what_a_terminal_obeys(place: Place, command: tuple[str, ...]) -> None:
    _, *written = run(place, *command)
    for shown in written:
        assert not FORBIDDEN.search(shown), ascii(shown)
        assert "Traceback" not in shown


def test_no_line_is_forged_in_the_list_of_derived_images(place: Place) -> None:
    _, listed, _ = run(place, "derived", "ls")
    lines = listed.splitlines()
    assert lines
    assert not any(line.startswith(KEY) for line in lines)
    assert all(re.match(r"[0-9a-f]{64}  (complete|failed|generating) ", line) for line in lines)


def test_a_platform_of_an_index_that_is_none_is_as_if_it_were_not_said(place: Place) -> None:
    status, listed, complaint = run(place, "analyze", "acme/app:1")
    assert status == 0, complaint
    assert listed.startswith("acme/app:1  linux/amd64  sha256:")
