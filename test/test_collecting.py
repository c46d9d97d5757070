"""The collector in the background of a server, and as a command."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data.derivedimages import Lease, NewDerived
from data.storage.distributed import DistributedStorage
from data.storage.local import LocalStorage
from endpoints.collecting import Collecting, _turn
from endpoints.collecting import collecting as of_services
from endpoints.collector import Bounds, Finding, Reason, Report, Tally, collector_of
from test.images import Image, Layer
from test.layers import file
from test.place import Place as Services
from test.server import served
from test.waiting import eventually
from util.digest import Digest


@dataclass
class Watched:
    """Stands for a collector and counts how often it is asked."""

    storage: DistributedStorage
    report: Report | Exception
    times: list[float] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    def collect(self) -> Report:
        self.times.append(time.monotonic())
        self.asked.set()
        if isinstance(self.report, Exception):
            raise self.report
        return self.report


@dataclass
class Background:
    """Starts what collects, and ends it."""

    watched: Watched
    folder: Path
    begun: list[Collecting] = field(default_factory=list)

    def start(self, *, seconds: float = 0.2, turns: str | None = None) -> Collecting:
        collecting = Collecting(self.watched, seconds=seconds, turns=turns or str(self.folder / "some/turns"))  # type: ignore[arg-type]
        collecting.start()
        self.begun.append(collecting)
        return collecting


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    storage = DistributedStorage({"default": LocalStorage(tmp_path)}, ["default"])
    finding = Finding(Reason.GONE, "squash of acme/app:1.0", "verbs/derived/x", 10)
    report = Report(
        dry_run=False, dropped=(finding,), kept=Tally(), unfinished=0, spools=0, jobs=0, failures=("no answer",)
    )
    background = Background(Watched(storage, report), tmp_path)
    yield background
    for collecting in background.begun:
        collecting.stop()
        if collecting._thread.is_alive():
            collecting._thread.join(60)
        assert not collecting._thread.is_alive()


def test_a_server_collects_every_now_and_then_and_tells_its_log(
    background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    background.start()
    assert background.watched.asked.wait(60)
    background.watched.asked.clear()
    assert background.watched.asked.wait(60)
    for told in ("dropped: 1 (10 bytes)", "dropped, gone: squash of acme/app:1.0", "no answer"):
        assert told in caplog.text
    first, second, *_ = background.watched.times
    assert second - first > 0.15  # it looks far more often


def test_of_many_processes_one_collects_at_a_time(background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: Counter[int] = Counter()

    class Often:
        def uniform(self, _: float, __: float) -> float:
            looks[threading.get_ident()] += 1
            return 0.0001

    monkeypatch.setattr("endpoints.collecting._CHANCE", Often())
    for _ in range(5):
        background.start(seconds=3000)
    eventually(lambda: len(looks) == 5 and min(looks.values()) > 3)
    assert len(background.watched.times) == 1


@pytest.mark.parametrize("now", [1800000000.0006, 1800000000.9996, 1800000000.0])
def test_who_looks_in_the_same_moment_finds_that_it_was_another_s_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    for ours in (True, False):
        with _turn(str(tmp_path / "turns"), 3000) as turn:
            assert turn is ours


def test_while_another_process_collects_nobody_else_does(background: Background) -> None:
    turns = background.folder / "turns"
    with open(turns, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        background.start(turns=str(turns))
        assert not background.watched.asked.wait(0.5)
    assert background.watched.asked.wait(60)


@pytest.mark.parametrize("turn", ["", "nonsense", "-5", "99999999999999999", "1e400", "nan"])
def test_a_turn_that_nobody_can_have_had_is_nobody_s(background: Background, turn: str) -> None:
    (background.folder / "turns").write_text(turn)
    background.start(turns=str(background.folder / "turns"))
    assert background.watched.asked.wait(60)


def test_where_no_turns_can_be_taken_everybody_collects(
    background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    (background.folder / "file").write_bytes(b"")
    background.start(turns=str(background.folder / "file/turns"))
    assert background.watched.asked.wait(60)
    assert "other processes of this host are not heeded" in caplog.text


def test_a_collection_that_fails_is_not_the_last_one(background: Background, caplog: pytest.LogCaptureFixture) -> None:
    background.watched.report = ValueError("a mistake of ours")
    background.start()
    assert background.watched.asked.wait(60)
    background.watched.asked.clear()
    assert background.watched.asked.wait(60)
    assert "a mistake of ours" in caplog.text


def test_nothing_collects_where_it_is_turned_off_or_the_registry_is_read_only(background: Background) -> None:
    assert not background.start(seconds=0)._thread.is_alive()
    background.watched.storage = DistributedStorage(
        {"default": LocalStorage(background.folder)}, ["default"], readonly=True
    )
    assert not background.start()._thread.is_alive()


def test_services_say_what_is_collected(tmp_path: Path) -> None:
    place = Services(tmp_path, {"VERBS_KEEP_DAYS": 7, "VERBS_QUOTA": "1K", "VERBS_GC_SECONDS": 60})
    services = place.services()
    collector = collector_of(services)
    assert collector.bounds == Bounds(7, 1024)
    assert (collector.images, collector.jobs, collector.storage) == (services.derived, services.jobs, services.storage)
    collecting = of_services(services)
    assert (collecting._seconds, collecting._turns) == (60, str(tmp_path / "var/collector.turns"))


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Services:
    """Return a place with an image whose tag means something else by now, and one that was made lately."""
    place = Services(tmp_path)
    place.push("acme/app:1.0", Image([Layer([file(b"etc/hostname", b"here")])]))
    services = place.services()
    now = services.registry.manifest("acme", "app", "1.0").digest
    for name, digest in (("moved", Digest.of(b"before")), ("kept", now)):
        new = NewDerived(
            key=Digest.of(name.encode()).hex,
            namespace="acme",
            repository="app",
            reference="1.0",
            manifest_digest=str(digest),
            verb="squash",
            platform="linux/amd64",
            compression="none",
            media_type="application/x-tar",
            file_name="app.tar",
        )
        lease = services.derived.claim(new, host="here")
        assert isinstance(lease, Lease)
        with services.storage.create(lease.path) as writer:
            writer.write(b"0123456789")
            writer.commit()
        services.derived.complete(lease, size=10, sha256="0" * 64)
    return place


def gc(place: Services, *arguments: str, **more: str) -> tuple[int, str, str]:
    environment = {**os.environ, "VERBS_DATA_DIR": place.configuration["VERBS_DATA_DIR"], **more}
    command = [sys.executable, "-c", "import app; app.main()", "gc", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout, done.stderr


def objects(place: Services) -> int:
    return len(list(place.services().storage.preferred.list("verbs/derived")))


def test_the_command_says_what_it_drops_and_a_dry_run_what_it_would(place: Services) -> None:
    line = "gone                       10  squash of acme/app:1.0\n"
    status, out, said = gc(place, "--dry-run")
    assert (status, out) == (0, line)
    assert said.startswith("dry run, nothing is changed; dropped: 1 (10 bytes), kept: 1 (10 bytes), left of dead")
    assert objects(place) == 2
    status, out, said = gc(place)
    assert (status, out) == (0, line)
    assert said.startswith("dropped: 1 (10 bytes), kept: 1 (10 bytes), ")
    assert objects(place) == 1
    assert gc(place)[:2] == (0, "")
    assert gc(place, VERBS_QUOTA="1") == (
        0,
        "quota                      10  squash of acme/app:1.0\n",
        (
            "dropped: 1 (10 bytes), kept: 0 (0 bytes), left of dead writers: 0, spools: 0, old jobs: 0,"
            " rows of virtual tags: 0, of packed layers: 0, signatures: 0\n"
        ),
    )


def test_the_command_fails_where_something_could_not_be_done(place: Services) -> None:
    place.sql("UPDATE verbs_derived SET path = 'sha256/ab/abcd' WHERE manifest_digest != 'x'")
    status, out, said = gc(place)
    assert (status, out) == (1, "")
    assert "registry-verbs: the row" in said
    assert "names 'sha256/ab/abcd', which is no place of a derived image" in said
    assert "Traceback" not in said


def test_the_command_leaves_a_read_only_registry(place: Services) -> None:
    status, out, said = gc(place, REGISTRY_STATE="readonly")
    assert (status, out) == (1, "")
    assert said == "registry-verbs: the registry is read-only: what is kept of derived images stays as it is\n"
    assert gc(place, "--dry-run", REGISTRY_STATE="readonly")[0] == 0
    assert objects(place) == 2


def test_a_server_of_several_processes_bounds_what_it_keeps(place: Services) -> None:
    def settled() -> bool:
        return objects(place) == 1

    with served(place, workers=2, more={"VERBS_GC_SECONDS": "1"}):
        eventually(settled, seconds=120)
    assert settled()
