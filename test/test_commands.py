"""The command line, as a process: what it prints where, how it exits, and what it leaves behind."""

import os
import pty
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from test.images import Image, Layer, Layout
from test.layers import file
from test.place import Place
from test.waiting import eventually

PROGRAM = [sys.executable, "-c", "import app; app.main()"]
HALTING = """
import sys, time, app
from endpoints.output import Output

def write(output, chunk):
    print("halted", file=sys.stderr, flush=True)
    time.sleep(60)

Output.write = write
app.main()
"""
IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])
LARGE = Image([Layer([file(b"noise", os.urandom(8 << 20))])])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    place.push("acme/app:1.0", IMAGE)
    place.push("acme/large:1.0", LARGE)
    return place


def environment(place: Place, **more: str) -> dict[str, str]:
    return {**os.environ, "VERBS_DATA_DIR": place.configuration["VERBS_DATA_DIR"], "COLUMNS": "100", **more}


def run(place: Place, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *arguments], env=environment(place, **more), capture_output=True, check=False, timeout=300
    )


def failure(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one line that a failure says."""
    assert done.returncode == 1
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("registry-verbs: ")
    return line


@pytest.mark.parametrize("command", [(), ("serve",), ("import",), ("derive",), ("formats",), ("gc",)])
def test_help_has_examples(place: Place, command: tuple[str, ...]) -> None:
    done = run(place, *command, "--help")
    assert done.returncode == 0
    assert b"Example" in done.stdout
    assert b"\n  registry-verbs " in done.stdout.replace(b"\n    registry-verbs ", b"\n  registry-verbs ")


def test_formats_lists_each_verb_with_a_line_to_copy(place: Place) -> None:
    done = run(place, "formats", SERVER_HOSTNAME="registry.example.com", PREFERRED_URL_SCHEME="https")
    text = done.stdout.decode()
    assert done.returncode == 0
    for verb in ("aci", "bundle", "ext4", "incus", "oci", "rootfs", "squash", "squashfs", "wsl"):
        assert f"\n{verb} " in f"\n{text}"
    assert "unavailable" not in text
    assert "https://registry.example.com/c1/squash/" in text


def test_what_a_program_is_missing_for_is_listed_and_not_derived(place: Place, tmp_path: Path) -> None:
    listed = run(place, "formats", PATH=str(tmp_path))
    assert listed.returncode == 0
    assert (
        b"  unavailable: tar2sqfs is not installed (Debian package squashfs-tools-ng); mksquashfs is" in listed.stdout
    )
    done = run(place, "derive", "squashfs", "acme/app:1.0", PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"registry-verbs: squashfs cannot be made here: tar2sqfs is not installed (Debian package" in done.stderr


@pytest.mark.parametrize(("verb", "begin"), [("squashfs", b"hsqs"), ("ext4", bytes(1024))])
def test_derive_writes_file_systems(place: Place, verb: str, begin: bytes, tmp_path: Path) -> None:
    done = run(place, "derive", verb, "acme/app:1.0", "-o", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, b"")
    [path] = tmp_path.iterdir()
    assert path.name == f"acme_app_1.0-linux-amd64.{verb}"
    assert path.read_bytes().startswith(begin)
    again = run(place, "derive", verb, "acme/app:1.0")
    assert again.stdout == path.read_bytes()


def test_derive_takes_the_options_that_formats_lists(place: Place) -> None:
    listed = run(place, "formats").stdout.decode()
    assert "\n          option spare: how many bytes are free in it" in listed
    done = run(place, "derive", "ext4", "acme/app:1.0", "--option", "spare=1M", SERVER_HOSTNAME="registry.example.com")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == place.app().test_client().get("/c1/ext4/acme/app/1.0?spare=1024K").data
    assert len(done.stdout) < 16 << 20


@pytest.mark.parametrize(
    ("verb", "options", "told"),
    [
        ("ext4", ["spare=lots"], "spare is 'lots'; allowed: 0, or 1M, 2M, 4M and so on up to 16G"),
        ("ext4", ["spore=1G"], "ext4 has no option 'spore', which is '1G'; allowed: spare"),
        ("rootfs", ["spare=1G"], "rootfs has no option 'spare', which is '1G'; allowed: none"),
        ("ext4", ["spare"], "'spare' is not NAME=VALUE"),
        ("ext4", ["=1G"], "'=1G' is not NAME=VALUE"),
        ("ext4", ["spare=1G", "spare=2G"], "spare is given more than once"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_says_what_is_allowed(
    place: Place, verb: str, options: list[str], told: str
) -> None:
    done = run(place, "derive", verb, "acme/app:1.0", *(f"--option={each}" for each in options))
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in " ".join(done.stderr.decode().split())


def test_derive_writes_the_image_alone_to_stdout(place: Place, tmp_path: Path) -> None:
    done = run(place, "derive", "rootfs", "acme/app:1.0")
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "rootfs.tar").write_bytes(done.stdout)
    with tarfile.open(tmp_path / "rootfs.tar") as tar:
        assert "etc/hostname" in tar.getnames()


def test_derive_writes_a_file_or_into_a_folder(place: Place, tmp_path: Path) -> None:
    assert run(place, "derive", "aci", "acme/app:1.0", "-o", str(tmp_path / "app.aci")).returncode == 0
    assert run(place, "derive", "aci", "acme/app:1.0", "-o", str(tmp_path)).returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["acme_app_1.0-linux-amd64.aci", "app.aci"]
    assert (tmp_path / "app.aci").read_bytes() == (tmp_path / "acme_app_1.0-linux-amd64.aci").read_bytes()


def test_derive_is_the_same_as_over_http(place: Place) -> None:
    done = run(
        place, "derive", "squash", "acme/app:1.0", "--compression", "zstd", SERVER_HOSTNAME="registry.example.com"
    )
    answer = place.app().test_client().get("/c1/squash/acme/app/1.0?compression=zstd")
    assert done.stdout == answer.data


def test_derive_reads_private_images_for_the_operator(place: Place) -> None:
    place.push("acme/private:1.0", IMAGE, private=True)
    assert run(place, "derive", "rootfs", "acme/private:1.0").returncode == 0


def test_a_binary_stream_is_not_written_to_a_terminal(place: Place) -> None:
    controller, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [*PROGRAM, "derive", "rootfs", "acme/app:1.0"],
            env=environment(place),
            stdout=terminal,
            stderr=subprocess.PIPE,
            check=False,
            timeout=300,
        )
    finally:
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 2
    assert b"-o FILE" in done.stderr


def test_progress_is_shown_on_a_terminal_alone(place: Place, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    command = [*PROGRAM, "derive", "rootfs", "acme/large:1.0", "-o", str(tmp_path / "rootfs.tar")]
    with subprocess.Popen(command, env=environment(place, TERM="xterm"), stderr=terminal) as running:
        os.close(terminal)
        shown = bytearray()
        while chunk := _read(controller):
            shown += chunk
    os.close(controller)
    assert running.returncode == 0
    assert b"acme_large_1.0-linux-amd64.tar" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # what a terminal answers when the other end is closed
        return b""


def test_a_reader_that_leaves_ends_it_quietly(place: Place) -> None:
    with subprocess.Popen(
        [*PROGRAM, "derive", "rootfs", "acme/large:1.0", "--compression", "zstd"],
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(1)
        running.stdout.close()
        said = running.stderr.read()
    assert (running.returncode, said) == (1, b"")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_who_stops_it_finds_nothing_half_written(place: Place, tmp_path: Path, number: int, status: int) -> None:
    command = [sys.executable, "-c", HALTING, "derive", "rootfs", "acme/large:1.0", "-o", str(tmp_path)]
    with subprocess.Popen(command, env=environment(place), stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == b"halted\n"
        assert len(os.listdir(tmp_path)) == 1
        running.send_signal(number)
        said = running.stderr.read()
    assert running.returncode == status
    assert b"Traceback" not in said
    assert os.listdir(tmp_path) == []


PLAYED = """#!/bin/sh
[ "$1" = --version ] && echo tar2sqfs 9.9 && exit 0
cat >/dev/null
echo $$ >{note}
{then}
"""


def played(folder: Path, then: str) -> str:
    """Put a tar2sqfs there that notes its number when it has been fed, and return a PATH on which it stands first."""
    program = folder / "bin" / "tar2sqfs"
    program.parent.mkdir()
    program.write_text(PLAYED.format(note=folder / "note", then=then))
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_who_stops_it_stops_the_program_that_works_for_it(
    place: Place, tmp_path: Path, number: int, status: int
) -> None:
    path = played(tmp_path, "read waiting; exec sleep 300")
    command = [*PROGRAM, "derive", "squashfs", "acme/large:1.0", "-o", str(tmp_path / "image")]
    with subprocess.Popen(command, env=environment(place, PATH=path), stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        eventually(lambda: (tmp_path / "note").exists() and (tmp_path / "note").read_text().endswith("\n"))
        running.send_signal(number)
        said = running.stderr.read()
    assert running.returncode == status
    assert b"Traceback" not in said
    eventually(lambda: not is_alive(int((tmp_path / "note").read_text())))
    assert not (tmp_path / "image").exists()


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_that_fails_is_named_with_its_last_words(place: Place, tmp_path: Path) -> None:
    path = played(tmp_path, "echo no space left on device >&2; exit 3")
    done = run(place, "derive", "squashfs", "acme/large:1.0", PATH=path)
    assert (done.returncode, done.stdout) == (1, b"")
    last = done.stderr.decode().splitlines()[-1]
    assert last == "registry-verbs: tar2sqfs ended with status 3: no space left on device"


def test_what_has_been_imported_can_be_derived(place: Place, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    source = layout.tag("edge", layout.image(IMAGE))
    done = run(place, "import", source, "acme/imported:1.0")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"registry-verbs derive rootfs acme/imported:1.0" in done.stderr
    assert place.app().test_client().get("/c1/rootfs/acme/imported/1.0").status_code == 200


def test_what_is_imported_as_private_is_not_for_everybody(place: Place, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    source = layout.tag("edge", layout.image(IMAGE))
    assert run(place, "import", source, "acme/hidden:1.0", "--private").returncode == 0
    assert place.app().test_client().get("/c1/rootfs/acme/hidden/1.0").status_code == 401


def test_what_is_missing_is_said_in_one_line(place: Place) -> None:
    assert "1.0" in failure(run(place, "derive", "rootfs", "acme/app:9.9"))
    assert "acme/absent" in failure(run(place, "derive", "rootfs", "acme/absent:1.0"))
    assert "linux/amd64" in failure(run(place, "derive", "rootfs", "acme/app:1.0", "--platform", "linux/s390x"))
    assert "squash" in failure(run(place, "derive", "floppy", "acme/app:1.0"))


def test_a_file_that_cannot_be_written_is_named(place: Place, tmp_path: Path) -> None:
    said = failure(run(place, "derive", "rootfs", "acme/app:1.0", "-o", str(tmp_path / "nowhere" / "x.tar")))
    assert "nowhere/x.tar cannot be written: No such file or directory" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("derive", "rootfs"),
        ("derive", "rootfs", "acme"),
        ("derive", "rootfs", "acme/app:1.0:2.0"),
        ("derive", "rootfs", "acme/app:1.0", "--platform", "amd64"),
        ("derive", "rootfs", "acme/app:1.0", "--compression", "xz"),
        ("import", "oci:layout", f"acme/app@sha256:{'0' * 64}"),
        ("serve", "--port", "70000"),
        ("serve", "--workers", "0"),
        ("nothing",),
    ],
)
def test_what_is_asked_for_wrongly_is_a_usage_error(place: Place, arguments: tuple[str, ...]) -> None:
    done = run(place, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("serve",), ("derive", "rootfs", "acme/app:1.0"), ("formats",)])
def test_a_wrong_setting_is_a_usage_error_in_one_line(place: Place, command: tuple[str, ...]) -> None:
    done = run(place, *command, REGISTRY_STATE="asleep")
    assert done.returncode == 2
    assert done.stderr == b"registry-verbs: REGISTRY_STATE is 'asleep'; allowed: normal or readonly\n"


def test_help_comes_at_once(place: Place) -> None:
    """In processor time, which does not depend on what else the machine does; and what takes long is not loaded."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(place, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 1
    telling = [sys.executable, "-X", "importtime", "-c", "import app; app.main()", "--help"]
    done = subprocess.run(telling, env=environment(place), capture_output=True, text=True, check=True, timeout=300)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "click" in loaded
    assert not loaded & {"boto3", "botocore", "celery", "flask", "gunicorn", "jsonschema", "sqlalchemy", "werkzeug"}
