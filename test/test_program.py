"""Programs that are not ours, played by shell scripts: found, asked for their version, fed, failing, standing still."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats import program as module
from formats.program import Program, ProgramFailed
from test.waiting import eventually

HERE = Path(__file__).parent.parent
MKDISK = Program("mkdisk", "disk-tools", "-V", oldest=(1, 2))
PLAIN = 'out=$1; cat >"$out"'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def write(folder: Path, script: str, *, version: str = "mkdisk 1.2.3 (1 April)", name: str = "mkdisk") -> Path:
    """Put a program there that tells `version`, and otherwise does what `script` does."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = -V ]; then echo '{version}'; exit 0; fi\n{script}\n")
    path.chmod(0o755)
    return path


def made(chunks: Iterator[bytes], program: Program = MKDISK) -> bytes:
    with tempfile.TemporaryFile() as output:
        program.make(["{output}"], chunks, output)
        output.seek(0)
        return output.read()


def told(chunks: Iterator[bytes], program: Program = MKDISK) -> str:
    with pytest.raises(ProgramFailed) as failed:
        made(chunks, program)
    return str(failed.value)


def is_alive(folder: Path) -> bool:
    """Tell whether the program lives that has noted its number."""
    try:
        number = int((folder / "note").read_text())
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ValueError):
        return False


# --- Which there is ---------------------------------------------------------------------------------------------------


def test_a_program_is_known_by_its_version(folder: Path) -> None:
    write(folder, PLAIN)
    assert MKDISK.missing is None
    assert MKDISK.version == "mkdisk 1.2.3"


def test_another_version_in_its_place_is_noticed(folder: Path) -> None:
    write(folder, PLAIN)
    assert MKDISK.version == "mkdisk 1.2.3"
    write(folder, PLAIN, version="mkdisk 1.10")
    assert MKDISK.version == "mkdisk 1.10"
    assert MKDISK.missing is None


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("mkdisk 1.1.9", "mkdisk 1.1.9 is older than 1.2"),
        ("mkdisk, the one and only", "mkdisk does not tell its version"),
    ],
)
def test_a_version_that_will_not_do_is_said(folder: Path, version: str, said: str) -> None:
    write(folder, PLAIN, version=version)
    assert (MKDISK.missing or "").endswith(said)


def test_one_that_is_not_there_is_named_with_its_package(folder: Path) -> None:
    assert MKDISK.missing == "mkdisk is not installed (Debian package disk-tools)"


def test_one_that_cannot_be_run_is_said(folder: Path) -> None:
    write(folder, PLAIN).write_bytes(b"\x7fELF nonsense")
    assert (MKDISK.missing or "").endswith("does not tell its version")


# --- What it makes ----------------------------------------------------------------------------------------------------


def test_it_is_fed_to_the_end_however_it_reads(folder: Path) -> None:
    write(folder, PLAIN)
    pieces = [os.urandom(size) for size in (1, 0, 70_000, 1 << 20, 3)]
    assert made(iter(pieces)) == b"".join(pieces)
    write(folder, 'sleep 0.2; dd bs=1000 of="$1" status=none iflag=fullblock; echo end >>"$1"')
    assert made(iter(pieces)) == b"".join(pieces) + b"end\n"
    assert made(iter(())) == b"end\n"


def test_it_has_nothing_of_our_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERBS_SECRET", "hidden")
    write(folder, 'cat >/dev/null; env >"$1"')
    assert b"hidden" not in made(iter([b"x"]))


def test_many_words_stop_nobody(folder: Path) -> None:
    write(folder, 'yes a warning | head -c 3000000 >&2; cat >"$1"; yes more | head -c 3000000 >&2; exit 1')
    assert told(iter([b"x" * 5_000_000])) == "mkdisk ended with status 1: more"


def test_what_it_may_complain_of_is_no_failure(folder: Path) -> None:
    import re

    calm = Program("mkdisk", "disk-tools", "-V", tolerated=re.compile("^WARNING: no bell"))
    write(folder, 'echo WARNING: no bell >&2; cat >"$1"')
    assert made(iter([b"x"]), calm) == b"x"
    assert told(iter([b"x"])) == "mkdisk complained: WARNING: no bell"
    write(folder, 'echo WARNING: skipped a file >&2; echo WARNING: no bell >&2; cat >"$1"')
    assert told(iter([b"x"]), calm) == "mkdisk complained: WARNING: skipped a file"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("cat >/dev/null; echo first >&2; echo no space left >&2; exit 3", "mkdisk ended with status 3: no space left"),
        ("exit 4", "mkdisk ended with status 4"),
        ("echo bad input >&2; exit 5", "mkdisk ended with status 5: bad input"),
        ("cat >/dev/null; kill -SEGV $$", "mkdisk was killed (SIGSEGV)"),
        ("printf 'no newline \\377' >&2; exit 1", "mkdisk ended with status 1: no newline �"),
    ],
)
def test_one_that_fails_is_named_with_its_last_words(folder: Path, script: str, said: str) -> None:
    write(folder, script)
    assert told(iter([b"x" * 100_000] * 20)) == said


def test_one_that_has_gone_is_said(folder: Path) -> None:
    assert told(iter([b"x"])) == "mkdisk cannot be started: No such file or directory"


@pytest.mark.parametrize("script", ["sleep 600", "cat >/dev/null; sleep 600", "cat >/dev/null; exec 2>&-; sleep 600"])
def test_one_that_stands_still_is_killed(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STILL_SECONDS", 0.5)
    write(folder, f"echo $$ >{folder}/note; {script.replace('sleep', 'exec sleep')}")

    def once_it_runs() -> Iterator[bytes]:
        eventually(lambda: is_alive(folder))
        yield from [b"x" * 100_000] * 20

    begin = time.monotonic()
    assert told(once_it_runs()).endswith("for 0.5 s")
    assert time.monotonic() - begin < 300  # its own end is not waited for
    assert not is_alive(folder)


def test_a_stream_that_breaks_leaves_no_program(folder: Path) -> None:
    write(folder, f"echo $$ >{folder}/note; exec cat >/dev/null")

    def breaking() -> Iterator[bytes]:
        yield b"x"
        eventually(lambda: is_alive(folder))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made(breaking())
    assert not is_alive(folder)


FEEDER = """
import tempfile, time
from formats.program import Program

def endless():
    while True:
        yield b"x" * 1000
        time.sleep(0.05)

with tempfile.TemporaryFile() as output:
    Program("mkdisk", "disk-tools", "-V").make(["{output}"], endless(), output)
"""


def test_a_program_ends_with_whoever_feeds_it_however_that_dies(folder: Path) -> None:
    write(folder, f'echo $$ >{folder}/note; exec cat >"$1"')
    ours = {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen([sys.executable, "-c", FEEDER], env=ours) as feeder:
        try:
            eventually(lambda: is_alive(folder))
        finally:
            feeder.send_signal(signal.SIGKILL)
    eventually(lambda: not is_alive(folder))
