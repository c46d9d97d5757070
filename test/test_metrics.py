"""Metrics and audit lines of a server that runs: three workers, many clients, one of the workers killed."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask, Response, request
from werkzeug.wsgi import FileWrapper

from endpoints import metrics
from endpoints.audit import Audit, _clipped, watch
from endpoints.extension import RegistryVerbs
from endpoints.settings import InvalidSetting
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.server import Running, curl, served
from test.waiting import eventually

SMALL = Image([Layer([file(b"etc/hostname", b"small\n")])])
LARGE = Image([Layer([file(b"noise", os.urandom(24 << 20))], wrapping="none")])
FIELDS = {
    "time", "request_id", "who", "ip", "method", "namespace", "repository", "tag", "verb", "platform", "compression",
    "status", "bytes", "complete", "seconds", "how", "code",
}  # fmt: skip


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    place = Place(tmp_path)
    place.push("acme/small:1.0", SMALL)
    place.push("acme/large:1.0", LARGE)
    with served(
        place, workers=3, log=tmp_path / "log", more={"VERBS_AUDIT_LOG": str(tmp_path / "audit.jsonl")}
    ) as running:
        yield running


def scrape(running: Running) -> dict[str, float]:
    """Return the samples of `/metrics` by name and labels, without the prefix that all have."""
    text = curl("-f", f"{running.url}/metrics").stdout.decode()
    samples = re.findall(r"^registry_verbs_(\S+?(?:\{.*\})?) ([0-9.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in samples}


def lines(running: Running, *, at_least: int) -> list[dict[str, Any]]:
    """Return the audit's lines once there are as many: a client may have its answer before its line is written."""
    path = running.place.folder / "audit.jsonl"
    eventually(lambda: len(path.read_bytes().splitlines()) >= at_least, what="there are not as many lines")
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def fetch(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    """Return status, body and request id of a GET over a connection of its own, so that any worker may answer."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", f"{split.path}?{split.query}", headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers["X-Request-ID"]


def test_32_clients_at_once_are_counted_and_written_down_each_once(running: Running) -> None:
    urls = [f"{running.url}/c1/rootfs/acme/small/1.0", f"{running.url}/c1/squash/acme/absent/1.0"] * 48
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(fetch, urls))
    statuses = Counter(status for status, _, _ in answers)
    assert statuses == {200: 48, 401: 48}
    written = lines(running, at_least=96)
    assert len(written) == 96
    assert all(set(line) == FIELDS for line in written)
    assert {line["request_id"] for line in written} == {identity for _, _, identity in answers}
    by_id = {line["request_id"]: line for line in written}
    for status, body, identity in answers:
        line = by_id[identity]
        assert (line["status"], line["bytes"], line["complete"]) == (status, len(body), True)
        assert abs((datetime.fromisoformat(line["time"]) - datetime.now(UTC)).total_seconds()) < 120
        assert line["ip"] == "127.0.0.1"
        assert 0 <= line["seconds"] < 60
        assert line["code"] == (None if status == 200 else "UNAUTHORIZED")
    samples = scrape(running)
    requests = {name: value for name, value in samples.items() if name.startswith("requests_total")}
    assert sum(requests.values()) == 96
    assert sum(value for name, value in requests.items() if 'status="401"' in name and 'verb="squash"' in name) == 48
    sent = sum(value for name, value in samples.items() if name.startswith("sent_bytes_total"))
    assert sent == sum(len(body) for _, body, _ in answers)
    assert samples['failures_total{code="UNAUTHORIZED",stage="answer"}'] == 48


def test_counters_of_a_killed_worker_stay_and_its_gauges_vanish(running: Running) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, [f"{running.url}/c1/rootfs/acme/absent/1.0"] * 60))
    assert len(lines(running, at_least=60)) == 60
    before = scrape(running)
    assert before["makings_running"] == 0
    folder = shared_folder(running)
    counted = {int(re.findall(r"_(\d+)\.db", path.name)[0]) for path in folder.glob("gauge_livesum_*.db")}
    victim = (counted & set(running.workers())).pop()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not list(folder.glob(f"gauge_live*_{victim}.db")))
    assert list(folder.glob(f"counter_{victim}.db"))
    eventually(lambda: len(running.workers()) == 3)
    name = 'requests_total{how="none",status="401",verb="rootfs"}'
    assert scrape(running)[name] == before[name] == 60


def shared_folder(running: Running) -> Path:
    """Return where the processes count: a worker that has counted has a file of it mapped."""
    while True:
        scrape(running)
        for pid in running.workers():
            found = re.search(r"(\S+registry-verbs-metrics-\w+)/", Path(f"/proc/{pid}/maps").read_text())
            if found is not None:
                return Path(found[1])


def test_the_folder_of_metrics_is_gone_with_its_server(running: Running) -> None:
    folder = shared_folder(running)
    assert folder.is_dir()
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(120)
    assert not folder.exists()


def test_a_client_that_leaves_is_written_down_as_cut(running: Running) -> None:
    split = urlsplit(running.url)
    connection = http.client.HTTPConnection(split.netloc, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", "/c1/rootfs/acme/large/1.0", headers={"X-Request-ID": "leaves"})
        connection.getresponse().read(1000)
    (line,) = lines(running, at_least=1)
    assert (line["request_id"], line["status"], line["complete"]) == ("leaves", 200, False)
    assert 1000 <= line["bytes"] < 24 << 20
    assert scrape(running)['cut_answers_total{verb="rootfs"}'] == 1


def test_verbs_that_strangers_make_up_make_no_labels(running: Running) -> None:
    for at in range(30):
        assert fetch(f"{running.url}/c1/verb{at}/acme/small/1.0")[0] == 404
    assert {line["verb"] for line in lines(running, at_least=30)} == {f"verb{at}" for at in range(30)}
    samples = scrape(running)
    assert samples['requests_total{how="none",status="404",verb="unknown"}'] == 30
    assert not any("verb1" in name for name in samples)


def test_nobody_can_write_lines_of_his_own(running: Running) -> None:
    forged = 'x%0A{"verb":"forged"}%0D%22%2C%22who%22:%22root%E2%80%A8%C2%85%1B[2J'
    fetch(f"{running.url}/c1/squash/{forged}/small/1.0", {"X-Request-ID": 'a"b'})
    fetch(f"{running.url}/c1/squash/acme/small/{forged}?platform=linux/{forged}&compression={'z' * 3000}")
    fetch(f"{running.url}/c1/{forged}/acme/small/1.0", {"X-Request-ID": "y" * 500})
    written = lines(running, at_least=3)
    assert len(written) == 3
    raw = (running.place.folder / "audit.jsonl").read_bytes()
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in raw)
    assert all(len(line) < 4096 for line in raw.splitlines())
    assert any(line["namespace"] == 'x\n{"verb":"forged"}\r","who":"root\u2028\x85\x1b[2J' for line in written)
    assert all(re.fullmatch("[0-9a-f]{32}", line["request_id"]) for line in written)
    assert {line["who"] for line in written} == {None}
    for line in running.log.read_text().splitlines():
        assert not line.startswith("{")
        assert line.isprintable()


def test_a_log_line_has_its_request_s_id(running: Running) -> None:
    running.place.blob(SMALL.layers[0]).unlink()
    assert fetch(f"{running.url}/c1/squash/acme/small/1.0", {"X-Request-ID": "me-1"})[2] == "me-1"
    eventually(lambda: "[me-1]" in running.log.read_text())


def test_a_rotated_log_is_left_alone(running: Running) -> None:
    path = running.place.folder / "audit.jsonl"
    fetch(f"{running.url}/c1/rootfs/acme/absent/1.0")
    assert len(lines(running, at_least=1)) == 1
    path.rename(path.with_suffix(".1"))
    path.touch()
    fetch(f"{running.url}/c1/rootfs/acme/absent/1.0")
    assert len(lines(running, at_least=1)) == 1


def test_the_lines_go_to_stdout_when_they_are_told_to(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with served(place, more={"VERBS_AUDIT_LOG": "-"}) as running:
        fetch(f"{running.url}/c1/rootfs/acme/absent/1.0", {"X-Request-ID": "here"})
        running.process.send_signal(signal.SIGTERM)
        running.process.wait()
        written = [json.loads(line) for line in running.output.read_text().splitlines() if line.startswith("{")]
    assert [(line["request_id"], line["status"]) for line in written] == [("here", 401)]


def test_without_a_file_the_lines_are_the_logger_s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "registry_verbs.audit"):
        answer = Place(tmp_path).app().test_client().get("/c1/rootfs/acme/absent/1.0")
        answer.close()
    (record,) = (record for record in caplog.records if record.name == "registry_verbs.audit")
    assert json.loads(record.getMessage())["request_id"] == answer.headers["X-Request-ID"]


def test_a_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"VERBS_AUDIT_LOG is '.*', which cannot be written: No such file"):
        Place(tmp_path, {"VERBS_AUDIT_LOG": str(tmp_path / "absent" / "log")}).app()


def test_a_log_that_fails_fails_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(audit: Audit, line: str) -> None:
        raise OSError(28, "No space left on device")

    client = Place(tmp_path).app().test_client()
    monkeypatch.setattr(Audit, "write", full)
    with client.get("/c1/rootfs/acme/absent/1.0") as answer:
        assert answer.status_code == 401
    assert "an audit line could not be written" in caplog.text


def test_what_cannot_be_counted_fails_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ValueError

    monkeypatch.setattr(metrics, "_of_process", broken)
    with Place(tmp_path).app().test_client().get("/c1/rootfs/acme/absent/1.0") as answer:
        assert answer.status_code == 401
    assert "something could not be counted" in caplog.text


def test_a_host_has_the_metrics_if_it_wants_them_and_says_who_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(tmp_path)
    host = Flask("host")
    host.config.update(place.configuration)
    RegistryVerbs(host, who=lambda: request.headers.get("X-User"))
    host.register_blueprint(metrics.blueprint, url_prefix="/verbs")
    metrics.look_up(host, "registry_verbs_jobs", "Jobs by state.", "state", lambda: {"queued": 3, "failed": 1})
    metrics.look_up(host, "registry_verbs_broken", "Fails.", "state", lambda: {"x": 1 // 0})

    @host.get("/own")
    def own() -> Response:
        return Response("own")

    client = host.test_client()
    with (
        caplog.at_level("INFO", "registry_verbs.audit"),
        client.get("/c1/rootfs/acme/absent/1.0", headers={"X-User": "ann"}) as answer,
    ):
        assert answer.status_code == 401
    assert [json.loads(record.getMessage())["who"] for record in caplog.records if record.levelname == "INFO"] == [
        "ann"
    ]
    assert "X-Request-ID" not in client.get("/own").headers
    text = client.get("/verbs/metrics").get_data(as_text=True)
    assert 'registry_verbs_jobs{state="queued"} 3.0' in text
    assert "registry_verbs_requests_total" in text
    assert "registry_verbs_broken{" not in text
    assert "registry_verbs_broken cannot be told" in caplog.text


def test_ids_are_on_every_answer_of_our_own_application(tmp_path: Path) -> None:
    client = Place(tmp_path).app().test_client()
    for path in ("/", "/nowhere", "/c1/", "/c1/_internal_ping", "/metrics"):
        assert client.get(path, headers={"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"


def test_a_file_that_the_server_sends_by_itself_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Werkzeug's wrapper here, gunicorn's in the tests of serving."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 1000)
    place = Place(tmp_path)
    host = Flask("host")
    host.config.update(place.configuration)
    RegistryVerbs(host)
    watch(host)

    @host.get("/files/<namespace>/<repository>/<tag>")
    def files(namespace: str, repository: str, tag: str) -> Response:
        opened = path.open("rb")
        opened.seek(1000)
        wrapper = request.environ["wsgi.file_wrapper"]
        return Response(wrapper(opened), headers={"Content-Length": "9000"}, direct_passthrough=True)

    with caplog.at_level("INFO", "registry_verbs.audit"):
        answer = host.test_client().get("/files/a/b/c", environ_overrides={"wsgi.file_wrapper": FileWrapper})
        assert len(answer.data) == 9000
        answer.close()
        part = host.test_client().get(
            "/files/a/b/c", environ_overrides={"wsgi.file_wrapper": FileWrapper}, buffered=False
        )
        part.close()
    found = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(line["bytes"], line["complete"]) for line in found] == [(9000, True), (8192, False)]


def test_a_long_value_is_clipped() -> None:
    assert _clipped("x" * 200) == "x" * 200
    assert _clipped("x" * 400) == "x" * 40 + "…"
    assert _clipped(None) is None


def test_failures_are_counted_by_codes_alone() -> None:
    host = Flask("host")
    host.register_blueprint(metrics.blueprint)

    def running(text: str) -> list[str]:
        return re.findall(r"^registry_verbs_makings_running .*$", text, re.MULTILINE)

    metrics.making_began()  # the process may have made other images before
    metrics.making_failed(InvalidSetting("x"))
    before = host.test_client().get("/metrics").get_data(as_text=True)
    for code in ("BLOB_UNKNOWN", "anything a client sends", ValueError("x")):
        metrics.failed("answer", code)
    metrics.making_began(takeover=True)
    metrics.making_ended("of-this-test", seconds=2.0, size=10_000_000)
    metrics.making_began()
    metrics.making_failed(InvalidSetting("x"))
    text = host.test_client().get("/metrics").get_data(as_text=True)
    assert 'registry_verbs_failures_total{code="BLOB_UNKNOWN",stage="answer"}' in text
    assert 'registry_verbs_failures_total{code="SETTING_INVALID",stage="making"}' in text
    assert "anything" not in text
    assert running(text) == running(before) != []
    assert 'registry_verbs_generation_bytes_per_second_sum{verb="of-this-test"} 5e+06' in text


def test_behind_a_proxy_the_address_is_the_client_s(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.1"}
    for more in ({}, {"VERBS_PROXIES": "1"}, {"VERBS_PROXIES": "2"}):
        client = Place(tmp_path, more).app().test_client()
        with (
            caplog.at_level("INFO", "registry_verbs.audit"),
            client.get("/c1/rootfs/acme/absent/1.0", headers=headers) as answer,
        ):
            assert answer.status_code == 401
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "registry_verbs.audit"]
    assert [line["ip"] for line in lines] == ["127.0.0.1", "198.51.100.1", "203.0.113.9"]


def test_jobs_are_told_by_state(tmp_path: Path) -> None:
    place = Place(tmp_path)
    text = place.app().test_client().get("/metrics").get_data(as_text=True)
    assert 'registry_verbs_jobs{state="queued"} 0.0' in text


def test_gauges_of_a_process_that_nobody_waited_for_vanish_too(running: Running) -> None:
    """A child of a worker that was killed with it: here its file is all there is of it."""
    folder = shared_folder(running)
    (source,) = list(folder.glob("gauge_livesum_*.db"))[:1]
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = folder / f"gauge_livesum_{gone.pid}.db"
    left.write_bytes(source.read_bytes())
    assert scrape(running)["makings_running"] == 0
    assert not left.exists()
    assert source.exists()


def test_the_way_an_answer_came_about_is_told(running: Running) -> None:
    url = f"{running.url}/c1/rootfs/acme/large/1.0"
    body = curl("-f", "-H", "X-Request-ID: 1", f"{url}?compression=none").stdout
    etag = re.search(
        r'ETag: ("\w+")', curl("-f", "--head", "-H", "X-Request-ID: 2", url).stdout.decode(), re.IGNORECASE
    )
    assert etag is not None
    # With Repr-Digest it is stored.
    eventually(lambda: b"epr-" in curl("-f", "--head", "-H", "X-Request-ID: 2", url).stdout)
    assert curl("-f", "-H", "X-Request-ID: 3", url).stdout == body
    assert curl("-f", "-r", "5-104", "-H", "X-Request-ID: 4", url).stdout == body[5:105]
    curl("-f", "-H", f"If-None-Match: {etag[1]}", "-H", "X-Request-ID: 5", url)
    curl("-f", "-r", "5-104", "-H", "X-Request-ID: 6", f"{running.url}/c1/squash/acme/large/1.0?compression=none")
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", split.path, headers={"X-Request-ID": "7"})
        connection.getresponse().read(1000)
    # Each process writes its own lines, the last may come first.
    eventually(lambda: {line["request_id"] for line in lines(running, at_least=7)} == set("1234567"))
    written = {line["request_id"]: line for line in lines(running, at_least=7)}
    told = {name: (line["method"], line["how"], line["status"], line["bytes"]) for name, line in written.items()}
    left = told.pop("7")
    assert told == {
        "1": ("GET", "made", 200, len(body)),
        "2": ("HEAD", None, 200, 0),
        "3": ("GET", "stored", 200, len(body)),
        "4": ("GET", "range", 206, 100),
        "5": ("GET", "not_modified", 304, 0),
        "6": ("GET", "planned", 206, 100),
    }
    assert left[1:3] == ("stored", 200)
    assert 1000 <= left[3] < len(body)
    assert {name: line["complete"] for name, line in written.items()} == {**dict.fromkeys("123456", True), "7": False}
    assert {line["platform"] for line in written.values()} == {"linux/amd64"}
    # A making is counted after its image can be seen.
    eventually(lambda: scrape(running).get('generation_seconds_count{verb="rootfs"}'))
    samples = scrape(running)
    assert samples['cache_hits_total{verb="rootfs"}'] == 3
    assert samples['cache_misses_total{verb="rootfs"}'] == 1
    assert samples['generated_bytes_total{verb="rootfs"}'] == len(body)
    assert samples['generation_seconds_count{verb="rootfs"}'] == 1
    assert samples['first_byte_seconds_count{how="stored",verb="rootfs"}'] == 2
