"""The benchmark: `python -m test.bench FILE` prints a table and writes the same figures to FILE as JSON.

The law: whole processes are measured, as a shell would start them, with the page cache warm; what is compared is run in
turns, and the median counts. Everything is a ratio to one limit: each layer of the image inflated once by `igzip -dc`,
one after the other. Images are made of the machine's own files (machineimage.py) and kept under var/bench.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Literal

from test import machineimage

WORK = Path("var/bench").absolute()
IMAGES: Mapping[str, Callable[[Path], None]] = {
    "big": machineimage.build_big,
    "many": machineimage.build_many,
    "deep": machineimage.build_deep,
}
SCALES = (10_000, 100_000, 1_000_000)
COMPRESSIONS = ("none", "gzip", "zstd")
MIB = 1 << 20
PROGRAM = str(Path(sys.executable).with_name("registry-verbs"))
State = Literal["indexed", "bare"]


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds from its start to its end, and the most memory it ever had (MiB).

    The kernel counts in what the process that started it had at that moment, so `peak` is never below some 35 MiB.
    """

    seconds: float
    peak: float


@dataclass(slots=True)
class Row:
    """One line of the table. `limit` is what `seconds` is divided by; `target` is the most that the ratio may be."""

    what: str
    seconds: float = 0.0
    limit: float | None = None
    target: float | None = None
    peak: float | None = None
    peak_target: float | None = None
    first_byte: float | None = None
    first_byte_target: float | None = None
    runs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        return self.seconds / self.limit if self.limit else None

    @property
    def verdict(self) -> str:
        pairs = [(self.ratio, self.target), (self.peak, self.peak_target), (self.first_byte, self.first_byte_target)]
        judged = [value <= most for value, most in pairs if value is not None and most is not None]
        return "" if not judged else "pass" if all(judged) else "miss"


@dataclass(frozen=True, slots=True)
class Subject:
    """Something to measure: `run` does it once; `first_byte` tells how long its first byte takes."""

    row: Row
    run: Callable[[], Run]
    first_byte: Callable[[], float] | None = None
    once: bool = False


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None, *, stdin: Path | None = None) -> Run:
    """Run a process to its end; its output goes nowhere. Raises CalledProcessError."""
    with open(stdin or os.devnull, "rb") as source:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(seconds, usage.ru_maxrss / 1024)


def measure_first_byte(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds until a process has written something; it is ended then."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        assert process.stdout is not None
        got = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - start
        process.kill()
    if not got:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds


# What is measured: our own


def place(state: State) -> dict[str, str]:
    """Return the environment of a registry. Nothing derived is kept in it: every run makes its image anew."""
    return {"VERBS_DATA_DIR": str(WORK / state), "REGISTRY_STATE": "readonly"}


def forget_indexes() -> None:
    shutil.rmtree(WORK / "bare" / "storage" / "verbs", ignore_errors=True)


def derive(image: str, verb: str, compression: str) -> list[str]:
    return [PROGRAM, "derive", verb, f"bench/{image}:1", "--compression", compression, "-o", "-"]


def indexed(image: str, verb: str, compression: str, **row: Any) -> Subject:
    command = derive(image, verb, compression)
    return Subject(
        Row(f"{verb}, {compression}", **row),
        partial(measure, command, place("indexed")),
        partial(measure_first_byte, command, place("indexed")),
    )


def bare(image: str, verb: str, compression: str, **row: Any) -> Subject:
    def run() -> Run:
        forget_indexes()
        return measure(derive(image, verb, compression), place("bare"))

    return Subject(Row(f"{verb}, {compression}, no index yet", **row), run)


@dataclass(frozen=True, slots=True)
class Server:
    """Gunicorn on loopback, with one worker, so that a request finds it idle and warm."""

    process: subprocess.Popen[bytes]
    port: int

    def url(self, image: str, verb: str, compression: str) -> str:
        return f"http://127.0.0.1:{self.port}/c1/{verb}/bench/{image}/1?compression={compression}"

    def run(self, image: str, verb: str, compression: str) -> Run:
        for pid in self._processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
        seconds, _ = self._get(image, verb, compression)
        return Run(seconds, max(map(_peak_of, self._processes())))

    def first_byte(self, image: str, verb: str, compression: str) -> float:
        return self._get(image, verb, compression)[1]

    def _get(self, image: str, verb: str, compression: str) -> tuple[float, float]:
        command = ["curl", "-fsS", "-o", "/dev/null", "-w", "%{time_total} %{time_starttransfer}"]
        done = subprocess.run([*command, self.url(image, verb, compression)], capture_output=True, check=True)
        total, first = map(float, done.stdout.split())
        return total, first

    def _processes(self) -> list[int]:
        return [self.process.pid, *_below(self.process.pid)]


def _below(pid: int) -> Iterator[int]:
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from _below(child)


def _peak_of(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving() -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PROGRAM, "serve", "--port", str(port), "--workers", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **place("indexed")}
    ) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/c1/_internal_ping")
            yield Server(process, port)
        finally:
            process.send_signal(signal.SIGTERM)


def _wait_for(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} does not answer")


# What is measured: the limit and the peers


def inflate(layers: Sequence[Path]) -> Run:
    runs = [measure(["igzip", "-dc", str(layer)]) for layer in layers]
    return Run(sum(run.seconds for run in runs), max(run.peak for run in runs))


def peers(image: str) -> Iterator[Subject]:
    """Yield what is on PATH of the programs that do a similar thing, each with what it reads."""
    layout, out = WORK / "images" / image, WORK / "peer"
    # crane inflates the layers of an archive, docker2aci wants them inflated.
    archives = {"crane": WORK / "images" / f"{image}.tar", "docker2aci": WORK / "images" / f"{image}-inflated.tar"}

    def run(*command: str, stdin: Path | None = None) -> Run:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        here = os.getcwd()
        os.chdir(out)
        try:
            return measure(command, stdin=stdin)
        finally:
            os.chdir(here)
            shutil.rmtree(out)

    commands: dict[str, Callable[[], Run]] = {
        "umoci": partial(run, "umoci", "unpack", "--image", f"{layout}:1", str(out / "bundle")),
        "skopeo": partial(
            run, "skopeo", "copy", f"oci:{layout}:1", f"docker-archive:{out / 'archive'}:bench/{image}:1"
        ),
        "crane": partial(run, "crane", "export", "-", "-", stdin=archives["crane"]),
        "docker2aci": partial(run, "docker2aci", str(archives["docker2aci"])),
    }
    names = {
        "umoci": "umoci unpack",
        "skopeo": "skopeo copy to docker-archive",
        "crane": "crane export",
        "docker2aci": "docker2aci",
    }
    for program, command in commands.items():
        if shutil.which(program) is None:
            continue
        archive = archives.get(program)
        if archive and not archive.exists():
            machineimage.write_docker_archive(layout, archive, f"{image}:1", inflated=program == "docker2aci")
        yield Subject(Row(names[program]), command, once=True)


# The measuring


def prepare(names: Sequence[str]) -> None:
    """Make the images and two registries that hold them, one with layer indexes and one to be robbed of them."""
    for name in names:
        folder = WORK / "images" / name
        if not folder.exists():
            say(f"building {name}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            _builder(name)(folder)
        for state in ("indexed", "bare"):
            imported = WORK / state / f"{name}.imported"
            if not imported.exists():
                environment = {**os.environ, "VERBS_DATA_DIR": str(WORK / state)}
                subprocess.run([PROGRAM, "import", f"oci:{folder}", f"bench/{name}:1"], env=environment, check=True)
                imported.touch()


def _builder(name: str) -> Callable[[Path], None]:
    if name in IMAGES:
        return IMAGES[name]
    return partial(machineimage.build_synthetic, entries=int(name.removeprefix("entries-")))


def take(subjects: Sequence[Subject], runs: int) -> None:
    """Measure all `subjects` in turns and leave the medians in their rows. The first turn warms up and is dropped."""
    for turn in range(runs + 1):
        for subject in subjects:
            if subject.once and turn != 1:
                continue
            try:
                done = subject.run()
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{subject.row.what}: {' '.join(error.cmd)} exits with {error.returncode}") from None
            if turn or subject.once:
                subject.row.runs.append(done.seconds)
                subject.row.peak = max(done.peak, subject.row.peak or 0)
            say(f"  {turn}/{runs} {subject.row.what}: {done.seconds:.2f} s", end="\r")
    for subject in subjects:
        subject.row.seconds = statistics.median(subject.row.runs)
        if subject.first_byte:
            first = subject.first_byte
            subject.row.first_byte = statistics.median(first() for _ in range(3))


def measure_image(image: str, runs: int, server: Server) -> dict[str, Any]:
    """Return the figures of one image."""
    layers = machineimage.layers_of(WORK / "images" / image)
    plain = WORK / "plain"
    with plain.open("wb") as out:
        command = derive(image, "squash", "none")
        subprocess.run(command, stdout=out, env={**os.environ, **place("indexed")}, check=True)

    most = (1.1, 1.2) if image == "big" else (1.25, 1.5)
    memory: dict[str, Any] = {"peak_target": 150.0}
    first: dict[str, Any] = {"first_byte_target": 0.4}
    limit = Subject(Row("the limit: igzip -dc, layer by layer"), partial(inflate, layers))
    deflated = Subject(Row("igzip -1 over the squashed output"), partial(measure, ["igzip", "-1", "-c", str(plain)]))
    rootfs = indexed(image, "rootfs", "none", target=most[0], **memory, **first)
    aci = indexed(image, "aci", "none", target=most[1], **memory, **first)
    squash = indexed(image, "squash", "gzip", **memory)
    verbs = [
        rootfs,
        aci,
        indexed(image, "squash", "none", **memory, **first),
        squash,
        *(
            indexed(image, verb, compression, **memory)
            for verb in ("rootfs", "aci")
            for compression in COMPRESSIONS[1:]
        ),
        indexed(image, "squash", "zstd", **memory),
        bare(image, "rootfs", "none", target=2.2, **memory),
        bare(image, "aci", "none", target=2.2, **memory),
        bare(image, "squash", "gzip", **memory),
    ]
    web = [
        Subject(
            Row(f"{of.row.what}, over HTTP", target=1.15, **memory, **(first if of is not squash else {})),
            partial(server.run, image, *of.row.what.split(", ")),
            partial(server.first_byte, image, *of.row.what.split(", ")),
        )
        for of in (rootfs, aci, squash)
    ]
    others = list(peers(image))
    take([limit, deflated, *verbs, *web, *others], runs)
    for subject in (*verbs, *others, deflated):
        subject.row.limit = limit.row.seconds
    squash.row.target = (limit.row.seconds + deflated.row.seconds) / limit.row.seconds
    for subject, of in zip(web, (rootfs, aci, squash), strict=True):
        subject.row.limit = of.row.seconds
        subject.row.what += " (ratio to the same through the command line)"
    size = plain.stat().st_size
    plain.unlink()
    rows = [subject.row for subject in (limit, deflated, *verbs, *web, *others)]
    return {
        "layers": len(layers),
        "stored": sum(layer.stat().st_size for layer in layers),
        "squashed": size,
        "rows": rows,
    }


def measure_scale(runs: int) -> list[dict[str, Any]]:
    """Return what an entry costs, at growing numbers of them."""
    figures = []
    for entries in SCALES:
        command = [sys.executable, "-m", "test.bench", "--steps", str(WORK / "images" / f"entries-{entries}")]
        taken = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(runs)]
        steps = {step: statistics.median(run[step] for run in taken) for step in taken[0]}
        whole = measure(derive(f"entries-{entries}", "rootfs", "none"), place("indexed"))
        forget_indexes()
        first = measure(derive(f"entries-{entries}", "rootfs", "none"), place("bare"))
        figures.append({"entries": entries, "steps": steps, "rootfs": asdict(whole), "no index yet": asdict(first)})
        say(f"  {entries} entries: {whole.seconds:.2f} s, {whole.peak:.0f} MiB")
    return figures


def take_steps(folder: Path) -> dict[str, float]:
    """Return the seconds of each step of a merge, in this process, without the start of Python and the look-ups."""
    from util.compression import decompressed
    from util.digest import Digest
    from util.layerindex import LayerIndex, read_layer_index
    from util.streamlayerformat import LayerSource, StreamLayerMerger

    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    layers = machineimage.layers_of(folder)
    with step("index"):
        dumps = []
        for layer in layers:
            with layer.open("rb") as blob:
                dumps.append(read_layer_index(decompressed(blob), layer=layer.name).dump())
    with step("load"):
        loaded = [LayerIndex.load(dump, layer=layer.name) for dump, layer in zip(dumps, layers, strict=True)]
    with step("plan"):
        merger = StreamLayerMerger(
            [
                LayerSource(Digest("sha256", layer.name), layer.stat().st_size, index, opener(layer))
                for layer, index in zip(layers, loaded, strict=True)
            ]
        )
    with step("stream"):
        for _ in merger.get_generator():
            pass
    return seconds


# The telling


def say(text: str, end: str = "\n") -> None:
    """Tell of the progress, on a terminal only when it is overwritten at once."""
    if end == "\n" or sys.stderr.isatty():
        print(f"{text:78}", end=end, file=sys.stderr, flush=True)


def opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def machine() -> dict[str, Any]:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        "python": platform.python_version(),
        "isal": version("isal"),
        "backports.zstd": version("backports.zstd"),
    }


def number(value: float | None, form: str, most: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + ("" if most is None else f" (≤ {most:{form}})")


def table(images: Mapping[str, Mapping[str, Any]], scale: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures as Markdown."""
    lines: list[str] = []
    for name, image in images.items():
        stored, squashed = image["stored"] / MIB, image["squashed"] / MIB
        lines += [
            "",
            f"**{name}**: {image['layers']} layers, {stored:.0f} MiB stored, {squashed:.0f} MiB squashed",
            "",
            "| | seconds | ratio | peak MiB | first byte, s | |",
            "|---|---:|---:|---:|---:|---|",
        ]
        lines += [
            f"| {row.what} | {row.seconds:.2f} | {number(row.ratio, '.2f', row.target)} "
            f"| {number(row.peak, '.0f', row.peak_target)} "
            f"| {number(row.first_byte, '.2f', row.first_byte_target)} | {row.verdict} |"
            for row in image["rows"]
        ]
    if scale:
        lines += [
            "",
            "**entries without payload**: microseconds an entry, and whole processes",
            "",
            "| entries | index | load | plan | stream | rootfs, s | peak MiB | no index yet, s | peak MiB | |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        ]
        for line in scale:
            steps = " | ".join(f"{seconds / line['entries'] * 1e6:.2f}" for seconds in line["steps"].values())
            whole, first = line["rootfs"], line["no index yet"]
            most = {100_000: 150, 1_000_000: 700}.get(line["entries"])
            verdict = "" if most is None else "pass" if max(whole["peak"], first["peak"]) <= most else "miss"
            lines.append(
                f"| {line['entries']:,} | {steps} | {whole['seconds']:.2f} | {number(whole['peak'], '.0f', most)} "
                f"| {first['seconds']:.2f} | {number(first['peak'], '.0f', most)} | {verdict} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m test.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="where the figures go, as JSON")
    parser.add_argument("--runs", type=int, default=5, help="of each, not counting the one that warms up (default 5)")
    parser.add_argument("--images", default=",".join(IMAGES), help="which of them (default: %(default)s)")
    parser.add_argument("--no-scale", action="store_true", help="leave out the images of 10,000 to 1,000,000 entries")
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps:
        print(json.dumps(take_steps(arguments.steps)))
        return
    if shutil.which("igzip") is None:
        raise SystemExit("igzip, which sets the limit, is not installed (Debian package isal)")
    chosen = [name for name in arguments.images.split(",") if name]
    prepare([*chosen, *([] if arguments.no_scale else [f"entries-{entries}" for entries in SCALES])])
    images: dict[str, dict[str, Any]] = {}
    with serving() as server:
        for name in chosen:
            say(f"measuring {name}")
            images[name] = measure_image(name, arguments.runs, server)
    scale = [] if arguments.no_scale else measure_scale(min(arguments.runs, 3))
    here = machine()
    print(", ".join(f"{what} {value}" for what, value in here.items()))
    print(table(images, scale))
    if arguments.file:
        rows = {
            name: image
            | {"rows": [asdict(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in image["rows"]]}
            for name, image in images.items()
        }
        arguments.file.write_text(json.dumps({"machine": here, "images": rows, "scale": scale}, indent=1) + "\n")


if __name__ == "__main__":
    main()
