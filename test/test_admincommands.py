"""The operator's commands, as processes: prime, derived, admin-token, worker, and what a server does by itself."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from data.jobs import Job, JobState, NewJob
from data.marks import Marks
from endpoints import background, stock
from endpoints.extension import BackgroundImpossible, RegistryVerbs
from endpoints.services import operators_services
from test.held import Held, gone
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import eventually

PROGRAM = [sys.executable, "-c", "import app; app.main()"]
SMALL = Image([Layer([file(b"etc/hostname", b"here\n")])])
LARGE = Image([Layer([file(b"noise", os.urandom(8 << 20))])])
ONE = {"VERBS_JOB_PROCESSES": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    for name in ("acme/app:v1", "acme/app:v2", "acme/tool:edge"):
        place.push(name, SMALL)
    return place


def environment(place: Place, **more: str) -> dict[str, str]:
    configuration = {key: str(value) for key, value in place.configuration.items()}
    return {**os.environ, **configuration, "COLUMNS": "100", **more}


def run(place: Place, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(place, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@contextlib.contextmanager
def started(
    place: Place, *arguments: str, seconds: float, **more: str
) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """Give a process and its first line, read the others, and tell it to end, which it does within `seconds`."""
    with subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment(place, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        try:
            yield process, said
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(seconds)
            reader.join()


# --- prime ------------------------------------------------------------------------------------------------------------


def test_prime_makes_what_globs_choose_and_is_silent(place: Place) -> None:
    done = run(place, "prime", "acme/*", "--tag", "v*", "--verb", "squash", "--platform", "linux/amd64", **ONE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(place.derived()) == 2
    jobs = place.services().jobs.list()
    assert {(job.state, job.reference, job.platform) for job in jobs} == {
        (JobState.DONE, "v1", "linux/amd64"),
        (JobState.DONE, "v2", "linux/amd64"),
    }
    assert all(job.asked_by for job in jobs)
    files = place.files()
    again = run(place, "prime", "acme/app:v1", "--verb", "squash", **ONE)
    assert (again.returncode, place.files()) == (0, files)


def test_what_prime_has_made_is_what_a_client_gets(place: Place) -> None:
    assert run(place, "prime", "acme/app:v1", "--verb", "rootfs", "--compression", "zstd", **ONE).returncode == 0
    answer = place.app().test_client().head("/c1/rootfs/acme/app/v1?compression=zstd")
    assert answer.headers["Content-Length"] == str(place.services().derived.list()[0].size)


def test_prime_names_each_that_could_not_be_made_and_makes_the_others(place: Place) -> None:
    done = run(place, "prime", "acme/app:v1", "acme/app:v2", "--verb", "squash", "--platform", "linux/s390x", **ONE)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "registry-verbs: squash of acme/app:v1 (linux/s390x): PLATFORM_UNKNOWN: there is no image for linux/s390x"
    )
    place.push("acme/arm:v1", Image(SMALL.layers, platform="linux/arm64"))
    some = run(place, "prime", "acme/*", "--tag", "v1", "--verb", "squash", "--platform", "linux/arm64", **ONE)
    assert some.returncode == 1
    assert len(place.derived()) == 1


@contextlib.contextmanager
def on_a_terminal(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", bytearray]]:
    """Run `command` with a terminal for its messages, and give what it has shown there so far."""
    controller, terminal = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # what a terminal answers when the other end is closed
            while chunk := os.read(controller, 1 << 16):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    with subprocess.Popen(command, env=environment, stderr=terminal, stdout=subprocess.DEVNULL) as running:
        os.close(terminal)
        reader.start()
        yield running, shown
    reader.join()
    os.close(controller)


def test_prime_shows_how_far_it_is_on_a_terminal(place: Place, tmp_path: Path) -> None:
    place.push("acme/large:v1", LARGE)
    held = Held(tmp_path / "held")
    command = [*PROGRAM, "prime", "acme/large:v1", "--verb", "rootfs"]
    terminal = environment(place, TERM="xterm", VERBS_LEASE_SECONDS="2", **held.environment)
    with on_a_terminal(command, terminal) as (running, shown):
        held.wait()
        eventually(lambda: b"rootfs of acme/large:v1" in shown and b"MiB" in shown, seconds=120)
        held.go_on()
    assert running.returncode == 0
    assert b"derived images" in shown


def test_prime_that_is_told_to_end_leaves_the_rest_for_others(place: Place, tmp_path: Path) -> None:
    place.push("acme/large:v1", LARGE)
    held = Held(tmp_path / "held")
    command = [*PROGRAM, "prime", "acme/large:v1", "--verb", "rootfs"]
    with subprocess.Popen(
        command, env=environment(place, **held.environment), stderr=subprocess.PIPE, text=True
    ) as running:
        (child,) = held.wait()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert running.returncode == 1
    assert said == "registry-verbs: 1 derived images wait for a server or a worker\n"
    assert gone(child)
    (job,) = place.services().jobs.list()
    assert job.state is JobState.QUEUED


def test_prime_waits_for_what_somebody_else_makes(place: Place, tmp_path: Path) -> None:
    place.push("acme/large:v1", LARGE)
    held = Held(tmp_path / "held")
    command = [*PROGRAM, "prime", "acme/large:v1", "--verb", "rootfs"]
    with subprocess.Popen(command, env=environment(place, **held.environment)) as first:
        held.wait()
        with on_a_terminal(command, environment(place, TERM="xterm")) as (second, shown):
            eventually(lambda: b"rootfs of acme/large:v1" in shown, seconds=120)
            time.sleep(1)
            assert second.poll() is None
            held.go_on()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(place.services().jobs.list()) == 1
    assert len(place.derived()) == 1


def test_prime_detached_only_asks(place: Place) -> None:
    done = run(place, "prime", "acme/app", "acme/tool", "--tag", "*", "--verb", "squash", "--verb", "aci", "--detach")
    (job, *_) = jobs = place.services().jobs.list()
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"6 derived images are asked for, in group {job.group_id}\n"
    assert {job.state for job in jobs} == {JobState.QUEUED}
    assert place.derived() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prime", "--verb", "squash"), "Missing argument"),
        (("prime", "acme/app:v1"), "Missing option '--verb'"),
        (("prime", "acme", "--verb", "squash"), "'acme' is not the name of an image"),
        (("prime", "acme", "--tag", "v*", "--verb", "squash"), "a glob of NAMESPACE/REPOSITORY"),
        (("prime", "acme/app:v1", "--verb", "squash", "--platform", "amd64"), "platforms: 'amd64'"),
        (("prime", "acme/app:v1", "--verb", "squash", "--compression", "xz"), "'xz' is not one of"),
        (("derived", "rm"), "Missing argument"),
        (("derived", "ls", "--state", "asleep"), "'asleep' is not one of"),
        (("admin-token", "create", "ci", "--days", "0"), "0.0 is not in the range"),
        (("worker", "--processes", "0"), "0 is not in the range"),
    ],
)
def test_what_is_asked_for_wrongly_is_a_usage_error(place: Place, arguments: tuple[str, ...], said: str) -> None:
    done = run(place, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prime", "acme/app:v9", "--verb", "squash"), "registry-verbs: acme/app has no tag 'v9'; there are: v2, v1"),
        (("prime", "nobody/*", "--verb", "squash"), "registry-verbs: no tag matches nobody/*:*"),
        (("prime", "acme/app:v1", "--verb", "floppy"), "registry-verbs: verbs: there is no verb 'floppy'"),
        (("derived", "rm", "0" * 64), f"registry-verbs: there is no derived image {'0' * 64}"),
        (("admin-token", "revoke", "nobody"), "registry-verbs: there is no token 'nobody'"),
        (("admin-token", "create", "a b"), "registry-verbs: 'a b' is no name for a token"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(place: Place, arguments: tuple[str, ...], said: str) -> None:
    done = run(place, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(said)


@pytest.mark.parametrize("arguments", [("prime", "acme/app:v1", "--verb", "squash"), ("worker",)])
def test_nothing_is_made_ahead_in_a_read_only_registry(place: Place, arguments: tuple[str, ...]) -> None:
    run(place, "derived", "ls")
    done = run(place, *arguments, REGISTRY_STATE="readonly")
    assert done.returncode == 1
    assert "the registry is read-only" in done.stderr


# --- derived, admin-token ---------------------------------------------------------------------------------------------


def test_derived_images_are_listed_and_deleted(place: Place) -> None:
    run(place, "prime", "acme/*", "--tag", "v*", "--verb", "rootfs", **ONE)
    done = run(place, "derived", "ls", "--namespace", "acme", "--verb", "rootfs", "--state", "complete")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, len(lines)) == (0, "", 2)
    keys = [line.split()[0] for line in lines]
    assert sorted(line.split("  ")[-1].strip() for line in lines) == ["rootfs of acme/app:v1", "rootfs of acme/app:v2"]
    assert all("complete" in line and "linux/amd64" in line for line in lines)
    assert run(place, "derived", "ls", "--repository", "absent").stdout == ""
    done = run(place, "derived", "rm", keys[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run(place, "derived", "rm", *keys)
    assert done.returncode == 1
    assert done.stderr == f"registry-verbs: there is no derived image {keys[0]}\n"
    assert place.derived() == []


def test_a_token_is_shown_once_and_opens_the_api_until_it_is_revoked(place: Place) -> None:
    done = run(place, "admin-token", "create", "ci", "--days", "90")
    token = done.stdout.strip()
    assert (done.returncode, done.stderr) == (0, "")
    client = place.app().test_client()
    headers = {"Authorization": f"Bearer {token}"}
    assert client.get("/api/v1/jobs", headers=headers).status_code == 200
    run(place, "admin-token", "create", "for-ever")
    listed = run(place, "admin-token", "ls").stdout
    assert token not in listed
    first, second = listed.splitlines()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert first.startswith("ci ")
    assert f"used {today}" in first
    assert second.startswith("for-ever")
    assert second.endswith("used never       until revoked")
    assert run(place, "admin-token", "revoke", "ci").returncode == 0
    assert client.get("/api/v1/jobs", headers=headers).status_code == 401


# --- worker -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def working(place: Place, **more: str) -> "Iterator[subprocess.Popen[str]]":
    with started(place, "worker", "--processes", "1", seconds=120, **more) as (process, said):
        assert said == "Waiting for jobs\n"
        yield process


def test_a_worker_without_a_broker_looks_into_the_database_and_at_the_rules(place: Place) -> None:
    rules = json.dumps([{"repositories": "acme/*", "tags": "v*", "verbs": ["squash"]}])
    run(place, "prime", "acme/app:v1", "--verb", "squash", "--detach")
    services = place.services()
    with working(place, VERBS_PRIME=rules, VERBS_PRIME_SECONDS="1") as worker:
        eventually(lambda: len(services.jobs.list(state=JobState.DONE)) == 1, seconds=120)
        marks = Marks(services.own_engine)
        eventually(lambda: marks.find("tags") is not None)  # the first look at the tags sets it
        place.push("acme/app:v3", SMALL)
        eventually(lambda: len(services.jobs.list(state=JobState.DONE)) == 2, seconds=120)
    assert worker.returncode == 0


def test_a_worker_with_a_bad_rule_says_so_and_does_not_begin(place: Place) -> None:
    rules = json.dumps([{"repositories": "acme/*", "verbs": ["floppy"]}])
    done = run(place, "worker", VERBS_PRIME=rules)
    assert done.returncode == 2
    assert "VERBS_PRIME[0]: verbs: there is no verb 'floppy'" in done.stderr


# --- A server ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(place: Place, **more: str) -> "Iterator[tuple[subprocess.Popen[str], str]]":
    with started(place, "serve", "--port", "0", "--workers", "2", seconds=120, **more) as (process, said):
        yield process, said.split()[2]


def ask(url: str, token: str, body: dict[str, Any]) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/v1/jobs", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_a_server_makes_what_is_asked_for_by_itself(place: Place) -> None:
    services = place.services()
    token = services.tokens.create("ci")
    with serving(place) as (_, url):
        body = {"repositories": "acme/*", "tags": "v*", "verbs": ["squash", "rootfs"]}
        assert len(ask(url, token, body)["jobs"]) == 4
        eventually(lambda: len(services.jobs.list(state=JobState.DONE)) == 4, seconds=120)
        assert len({job.worker for job in services.jobs.list()}) == 1, "one process of a machine makes ahead"
        with urllib.request.urlopen(f"{url}/metrics", timeout=120) as answer:
            metrics = answer.read().decode()
        assert 'registry_verbs_generation_seconds_count{verb="squash"} 2.0' in metrics
        assert 'registry_verbs_jobs{state="done"} 4.0' in metrics


def test_a_server_that_is_started_again_finds_its_jobs(place: Place, tmp_path: Path) -> None:
    place.push("acme/large:v1", LARGE)
    held = Held(tmp_path / "held")
    services = place.services()
    token = services.tokens.create("ci")
    with serving(place, **held.environment) as (server, url):
        ask(url, token, {"images": ["acme/large:v1"], "verbs": ["rootfs"]})
        (child,) = held.wait()
        server.send_signal(signal.SIGTERM)
        server.wait(60)  # what is held would never end
        assert gone(child)
    (job,) = services.jobs.list()
    assert job.state is JobState.QUEUED
    held.go_on()
    with serving(place):
        eventually(lambda: stock.job(services, job.id).state is JobState.DONE, seconds=120)
    assert len(place.derived()) == 1


def test_another_process_of_a_server_takes_over_from_one_that_is_killed(place: Place, tmp_path: Path) -> None:
    place.push("acme/large:v1", LARGE)
    held = Held(tmp_path / "held")
    services = place.services()
    token = services.tokens.create("ci")
    with serving(place, VERBS_LEASE_SECONDS="300", **held.environment) as (_, url):
        ask(url, token, {"images": ["acme/large:v1"], "verbs": ["rootfs"]})
        (child,) = held.wait()
        (job,) = services.jobs.list()
        worker = int((job.worker or "").rpartition(":")[2])
        os.kill(worker, signal.SIGKILL)
        assert gone(worker)
        assert gone(child)
        # As if so much time had passed that it counts as lost.
        place.sql("UPDATE verbs_job SET due_ms = 1 WHERE state = 'running'")
        held.go_on()
        done = eventually(lambda: [each for each in services.jobs.list() if each.state is JobState.DONE], seconds=120)
    assert [(each.id, each.attempts) for each in done] == [(job.id, 2)]


# --- On a host --------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(place: Place) -> Iterator[Flask]:
    host = Flask("host")
    host.config.update(place.configuration)
    yield host
    background.stop_all()


def behind() -> list[str]:
    """Return the threads that make images ahead."""
    return [thread.name for thread in threading.enumerate() if thread.name in ("background", "watch")]


def queued(place: Place) -> Job:
    (job,) = place.services().jobs.add([NewJob(verb="squash", namespace="acme", repository="app", reference="v1")])
    return job


def test_a_host_makes_nothing_ahead_unless_it_asks(place: Place, host: Flask) -> None:
    verbs = RegistryVerbs(host)
    assert behind() == []
    job = queued(place)
    verbs.start_background(host)
    eventually(lambda: stock.job(place.services(), job.id).state is JobState.DONE, seconds=120)
    background.stop_all()
    assert behind() == []


def test_a_host_with_services_of_its_own_has_to_say_how_they_are_made(place: Place, host: Flask) -> None:
    verbs = RegistryVerbs(host, engine=place.engine)
    with pytest.raises(BackgroundImpossible, match="say make_services"):
        verbs.start_background(host)
    job = queued(place)
    verbs.start_background(host, make_services=_Made(place.configuration))
    eventually(lambda: stock.job(place.services(), job.id).state is JobState.DONE, seconds=120)


class _Made:
    """How a host may make its services in another process."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._configuration = configuration

    def __call__(self) -> Any:
        return operators_services(self._configuration)


@pytest.mark.parametrize("more", [{"REGISTRY_STATE": "readonly"}, {"VERBS_BROKER_URL": "redis://127.0.0.1:1/0"}])
def test_where_others_make_it_or_nobody_may_nothing_is_started(place: Place, more: dict[str, str]) -> None:
    app = Place(place.folder, more).app()
    RegistryVerbs().start_background(app)
    assert behind() == []


def test_a_folder_that_cannot_be_locked_in_stops_nobody(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    folder = place.folder / "var"
    elsewhere = {
        "VERBS_DATA_DIR": "/dev/null/nothing",
        "VERBS_SPOOL_DIR": str(place.folder / "spool"),
        "DB_URI": f"sqlite:///{folder / 'registry.db'}",
        "DISTRIBUTED_STORAGE_CONFIG": {"default": ["LocalStorage", {"storage_path": str(folder / "storage")}]},
    }
    app = Place(place.folder, elsewhere).app()
    job = queued(place)
    try:
        RegistryVerbs().start_background(app)
        eventually(lambda: stock.job(place.services(), job.id).state is JobState.DONE, seconds=120)
    finally:
        background.stop_all()
    assert "every process makes images ahead" in caplog.text
