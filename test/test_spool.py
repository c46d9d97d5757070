"""Spools: what a follower sees of one, in its maker's process and in others, whatever becomes of the maker."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from endpoints import following, spool
from endpoints.following import PIECE, Follower, Near
from endpoints.spool import Ending, MakerGone, MakingFailed, Spool, SpoolCut

CONTENT = os.urandom(3 * PIECE + 1000)
TOKEN = "0123456789abcdef"


@pytest.fixture(params=["own", "growing"])
def growing(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Return a file that the maker writes itself, or None where the spool has one of its own."""
    if request.param == "own":
        return None
    (tmp_path / "part").write_bytes(b"")
    return str(tmp_path / "part")


@pytest.fixture
def made(tmp_path: Path, growing: str | None) -> Iterator[Spool]:
    made = Spool(folder(tmp_path), TOKEN, growing=growing)
    yield made
    made.close()
    assert os.listdir(folder(tmp_path)) == []


def folder(tmp_path: Path) -> str:
    return str(tmp_path / "spool")


def write(made: Spool, growing: str | None, content: bytes) -> None:
    if growing is None:
        made.write(content)
        return
    with open(growing, "ab") as part:
        part.write(content)
    made.grown(len(content))


@pytest.fixture(params=["near", "far"])
def follower(request: pytest.FixtureRequest, made: Spool, tmp_path: Path) -> Iterator[Follower]:
    """Return a follower as it is within the maker's process, and as it is in another one."""
    if request.param == "near":
        follower: Follower | None = Near(made)
    else:
        follower = following.find(folder(tmp_path), TOKEN, held=lambda: True)
    assert follower is not None
    with follower:
        yield follower


def test_a_follower_gets_what_is_there_and_what_comes(made: Spool, growing: str | None, follower: Follower) -> None:
    made.begin(len(CONTENT))
    write(made, growing, CONTENT[:100])
    assert follower.begun().size == len(CONTENT)

    def rest() -> None:
        for at in range(100, len(CONTENT), 700_000):
            time.sleep(0.01)
            write(made, growing, CONTENT[at : at + 700_000])
        made.end(Ending.WHOLE)

    maker = threading.Thread(target=rest)
    maker.start()
    chunks = list(follower.chunks())
    maker.join()
    assert b"".join(chunks) == CONTENT
    assert max(map(len, chunks)) <= PIECE


def test_a_follower_of_what_has_ended_gets_all_of_it_and_its_size(
    made: Spool, growing: str | None, follower: Follower
) -> None:
    made.begin(None)
    write(made, growing, CONTENT)
    made.end(Ending.WHOLE)
    assert follower.begun().size == len(CONTENT)
    assert b"".join(follower.chunks()) == CONTENT


def test_an_empty_one_is_whole(made: Spool, follower: Follower) -> None:
    made.begin(0)
    made.end(Ending.WHOLE)
    assert follower.begun().size == 0
    assert list(follower.chunks()) == []


def test_what_is_begun_without_a_byte_is_waited_for(made: Spool, growing: str | None, follower: Follower) -> None:
    made.begin(5)
    threading.Timer(0.1, write, (made, growing, b"01234")).start()
    assert follower.begun().written == 5


def test_a_name_that_goes_leaves_those_who_follow(made: Spool, growing: str | None, follower: Follower) -> None:
    made.begin(None)
    write(made, growing, CONTENT)
    made.end(Ending.WHOLE)
    made.close()
    assert b"".join(follower.chunks()) == CONTENT


def test_a_failure_before_the_first_byte_is_raised_there(made: Spool, follower: Follower) -> None:
    made.end(Ending.FAILED, ValueError("no such layer"))
    with pytest.raises((ValueError, MakingFailed), match="no such layer"):
        follower.begun()


def test_a_failure_in_the_middle_is_raised_after_what_was_there(
    made: Spool, growing: str | None, follower: Follower
) -> None:
    made.begin(None)
    write(made, growing, b"0123")
    made.end(Ending.FAILED, ValueError("a layer is cut"))
    chunks = follower.chunks()
    assert next(chunks) == b"0123"
    with pytest.raises((ValueError, MakingFailed), match="a layer is cut"):
        next(chunks)


@pytest.mark.parametrize("ending", [Ending.LEFT, Ending.BROKEN])
def test_a_maker_that_leaves_says_so(made: Spool, growing: str | None, follower: Follower, ending: Ending) -> None:
    made.begin(None)
    write(made, growing, b"0123")
    made.end(ending)
    made.end(Ending.WHOLE)  # too late
    chunks = follower.chunks()
    assert next(chunks) == b"0123"
    with pytest.raises(MakerGone) as gone:
        next(chunks)
    assert gone.value.ending is ending
    assert follower.piece(1, 2) == b"12"


def test_a_spool_that_somebody_cut_is_an_error(
    made: Spool, growing: str | None, follower: Follower, tmp_path: Path
) -> None:
    made.begin(None)
    write(made, growing, CONTENT)
    os.truncate(os.path.join(folder(tmp_path), TOKEN + spool.DATA), 100)
    made.end(Ending.WHOLE)
    with pytest.raises(SpoolCut):
        list(follower.chunks())


def test_a_follower_that_was_closed_reads_no_more(follower: Follower, made: Spool) -> None:
    made.begin(0)
    follower.close()
    follower.close()
    with pytest.raises(ValueError, match="closed"):
        follower.piece(0, 1)


def test_watching_ends_in_time(made: Spool, follower: Follower) -> None:
    assert follower.watch(0, 0.05).ending is None


def test_followers_of_the_maker_s_process_are_counted(tmp_path: Path) -> None:
    made = Spool(folder(tmp_path), TOKEN)
    with Near(made), Near(made):
        assert made.followers == 2
    assert made.followers == 0
    made.close()
    with pytest.raises(MakerGone):
        Near(made)


def test_a_spool_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert following.find(folder(tmp_path), TOKEN, held=lambda: True) is None
    Spool(folder(tmp_path), TOKEN).close()
    assert following.find(folder(tmp_path), TOKEN, held=lambda: True) is None


def test_a_growing_file_on_another_file_system_is_followed_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    part = tmp_path / "part"
    part.write_bytes(b"")
    made = Spool(folder(tmp_path), TOKEN, growing=str(part))
    follower = following.find(folder(tmp_path), TOKEN, held=lambda: True)
    assert follower is not None
    with follower:
        part.unlink()
        assert following.find(folder(tmp_path), TOKEN, held=lambda: True) is None
    made.close()


def test_a_spool_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Spool(folder(tmp_path), TOKEN, growing=str(tmp_path / "absent"))
    assert os.listdir(folder(tmp_path)) == []


def test_a_note_that_a_full_disk_cut_is_read_as_far_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Spool(folder(tmp_path), TOKEN)
    writing = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: writing(descriptor, data[:7]))
        with pytest.raises(OSError, match="No space"):
            made.begin(3)
    made.begin(3)
    made.write(b"012")
    made.end(Ending.WHOLE)
    follower = following.find(folder(tmp_path), TOKEN, held=lambda: True)
    assert follower is not None
    with follower:
        assert b"".join(follower.chunks()) == b"012"
    made.close()


# --- Makers that end otherwise ----------------------------------------------------------------------------------------

MAKER = """
import sys, time
from endpoints.spool import Spool
made = Spool(sys.argv[1], sys.argv[2], growing=sys.argv[3] or None)
made.begin(None)
if not sys.argv[3]:
    made.write(b"0123")
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def maker(tmp_path: Path, growing: str | None) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process that has made four bytes."""
    if growing is not None:
        Path(growing).write_bytes(b"0123")
    command = [sys.executable, "-c", MAKER, folder(tmp_path), TOKEN, growing or ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield process
        process.kill()


def test_a_maker_that_was_killed_is_noticed_at_once(
    tmp_path: Path, maker: "subprocess.Popen[bytes]", growing: str | None
) -> None:
    follower = following.find(folder(tmp_path), TOKEN, held=lambda: True)
    assert follower is not None
    with follower:
        chunks = follower.chunks()
        assert next(chunks) == b"0123"
        assert not spool.dead(folder(tmp_path), TOKEN)
        assert not spool.bury(folder(tmp_path), TOKEN)
        maker.kill()
        maker.wait()
        with pytest.raises(MakerGone) as gone:
            next(chunks)
        assert gone.value.ending is None
        assert spool.dead(folder(tmp_path), TOKEN)
        assert spool.bury(folder(tmp_path), TOKEN)
        assert os.listdir(folder(tmp_path)) == []
        assert growing is None or not os.path.exists(growing)
        assert follower.piece(0, 10) == b"0123"


def test_a_maker_that_stands_still_is_followed_until_its_lease_is_over(
    tmp_path: Path, maker: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_PATIENCE", 0.1)
    answers = iter([True, True, False])
    follower = following.find(folder(tmp_path), TOKEN, held=lambda: next(answers))
    assert follower is not None
    maker.send_signal(signal.SIGSTOP)
    with follower:
        chunks = follower.chunks()
        assert next(chunks) == b"0123"
        with pytest.raises(MakerGone):
            next(chunks)
        assert next(answers, None) is None


def test_a_sweep_removes_what_the_dead_left_and_that_alone(
    tmp_path: Path, maker: "subprocess.Popen[bytes]", growing: str | None
) -> None:
    living = Spool(folder(tmp_path), "living")
    assert spool.sweep(folder(tmp_path), older_than=0) == 0
    maker.kill()
    maker.wait()
    Path(folder(tmp_path), "lonely.data").write_bytes(b"x")
    assert spool.sweep(folder(tmp_path)) == 0  # too young
    assert spool.sweep(folder(tmp_path), older_than=0, dry_run=True) == 2
    assert spool.sweep(folder(tmp_path), older_than=0) == 2
    assert sorted(os.listdir(folder(tmp_path))) == ["living", "living.data"]
    assert growing is None or not os.path.exists(growing)
    living.close()


def test_there_is_nothing_to_sweep_where_nothing_was_made(tmp_path: Path) -> None:
    assert spool.sweep(folder(tmp_path), older_than=0) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_keep_its_parent_s_makings_alive(tmp_path: Path) -> None:
    made = Spool(folder(tmp_path), TOKEN)
    reading, writing = os.pipe()
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.write(telling, b"!")  # what is done in a new process has been done
        os.read(reading, 1)
        os._exit(0)
    try:
        os.close(reading)
        os.read(told, 1)
        made.forget()  # what the kernel does when the parent is killed
        assert spool.dead(folder(tmp_path), TOKEN)
    finally:
        for descriptor in (writing, told, telling):
            os.close(descriptor)
        os.waitpid(child, 0)
    assert spool.bury(folder(tmp_path), TOKEN)
