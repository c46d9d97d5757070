"""What is measured of the front door: an image of one large layer pushed and pulled, beside Debian's registry.

The law: both get the same requests from the same client, curl, in turns: a blob as clients send it (POST, one PATCH, an
empty PUT), and a blob fetched. What skopeo takes for the whole image is told as well; most of that is skopeo's own.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from test.bench.measuring import MIB, PROGRAM, WORK, fetch, free_port, say, serving, wait_for

SIZE = 1 << 30
PASSWORD = "benchmark"  # of a registry that lives as long as the benchmark
_CONFIG = {"architecture": "amd64", "os": "linux", "config": {}}
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Door:
    """A registry: its name, where it listens, and what it wants to see of who asks."""

    name: str
    host: str
    credentials: str | None

    @property
    def curl(self) -> list[str]:
        return [] if self.credentials is None else ["-u", self.credentials]

    def skopeo(self, side: str) -> list[str]:
        known = ["--no-creds"] if self.credentials is None else ["--creds", self.credentials]
        return [f"--{side}-tls-verify=false", *(each.replace("--", f"--{side}-", 1) for each in known)]


def measure_pushing(runs: int) -> dict[str, Any]:
    """Return the figures, by what is done and by registry."""
    folder = WORK / "pushing"
    shutil.rmtree(folder, ignore_errors=True)
    layout = _layout(folder / "image")
    figures: dict[str, Any] = {"bytes": SIZE}
    with ExitStack() as stack:
        doors = [stack.enter_context(_ours(folder)), stack.enter_context(_debian(folder))]
        blobs = iter(range(1, 1000))
        for door in doors:
            _skopeo("copy", *door.skopeo("dest"), f"oci:{layout}:1", f"docker://{door.host}/bench/image:1")
        measures: dict[str, Callable[[Door], float]] = {
            "push a blob": lambda door: _push(door, _fresh(layout, folder / "fresh", next(blobs))),
            "pull a blob": lambda door: _pull(door, layout),
            "skopeo push": lambda door: _skopeo_push(door, layout, folder / "fresh-image", next(blobs)),
            "skopeo pull": lambda door: _skopeo_pull(door, folder / "pulled"),
        }
        for what, measure in measures.items():
            taken: dict[str, list[float]] = {door.name: [] for door in doors}
            for _ in range(runs):
                for door in doors:
                    taken[door.name].append(measure(door))
            figures[what] = {name: statistics.median(seconds) for name, seconds in taken.items()}
            say(f"  {what} is measured")
    shutil.rmtree(folder, ignore_errors=True)
    return figures


@contextmanager
def _ours(folder: Path) -> Iterator[Door]:
    environment = {"VERBS_DATA_DIR": str(folder / "ours"), "VERBS_REGISTRY": "own"}
    subprocess.run(
        [PROGRAM, "user", "create", "bench", "--password-stdin"],
        input=f"{PASSWORD}\n".encode(),
        env={**os.environ, **environment},
        capture_output=True,
        check=True,
    )
    with serving(environment, workers=2) as server:
        yield Door("registry-verbs", f"127.0.0.1:{server.port}", f"bench:{PASSWORD}")


@contextmanager
def _debian(folder: Path) -> Iterator[Door]:
    port = free_port()
    configuration = folder / "docker-registry.json"  # JSON is YAML
    configuration.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(folder / "debian")}},
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
    with subprocess.Popen(
        ["docker-registry", "serve", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/v2/")
            yield Door("docker-registry", f"127.0.0.1:{port}", None)
        finally:
            process.terminate()


def _layout(folder: Path) -> Path:
    """Make an OCI layout with one layer: SIZE random bytes, compressed, so that skopeo leaves it as it is."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    noise = folder / "noise"
    with noise.open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))
    subprocess.run(["tar", "-C", str(folder), "-cf", str(folder / "tar"), "noise"], check=True)
    noise.unlink()
    with (folder / "tar").open("rb") as file:
        diff_id = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    with (folder / "layer").open("wb") as file:
        subprocess.run(["igzip", "-1", "-c", str(folder / "tar")], stdout=file, check=True)
    (folder / "tar").unlink()
    return _described(folder, diff_id)


def _described(folder: Path, diff_id: str) -> Path:
    """Bring the file `layer` to its place and write what describes it."""
    blobs = folder / "blobs" / "sha256"
    with (folder / "layer").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / "layer").rename(blobs / digest)
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": f"sha256:{digest}",
        "size": (blobs / digest).stat().st_size,
    }
    config = _document(blobs, {**_CONFIG, "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
    manifest = _document(
        blobs,
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **config},
            "layers": [layer],
        },
    )
    tagged = {"mediaType": _MANIFEST, **manifest, "annotations": {"org.opencontainers.image.ref.name": "1"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    return folder


def _diff_id(layout: Path) -> str:
    blobs = layout / "blobs" / "sha256"
    [found] = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = json.loads((blobs / found["digest"][7:]).read_bytes())
    [diff_id] = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())["rootfs"]["diff_ids"]
    return str(diff_id)


def _document(blobs: Path, value: object) -> dict[str, Any]:
    content = json.dumps(value).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def _layer(layout: Path) -> Path:
    return max((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)


def _fresh(layout: Path, path: Path, number: int) -> Path:
    """Return a layer that no registry has seen: the same with another time in its gzip header."""
    shutil.copyfile(_layer(layout), path)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(number.to_bytes(4, "little"))
    return path


def _push(door: Door, blob: Path) -> float:
    """Return the seconds that the blob takes from the POST to the answer of the PUT."""
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    base = f"http://{door.host}"
    start = time.perf_counter()
    location = _location(door, base, "-X", "POST", f"{base}/v2/bench/image/blobs/uploads/")
    location = _location(door, base, "-X", "PATCH", "-H", "Transfer-Encoding: chunked", "-T", str(blob), location)
    separator = "&" if urllib.parse.urlsplit(location).query else "?"
    _location(door, base, "-X", "PUT", f"{location}{separator}digest=sha256:{digest}")
    return time.perf_counter() - start


def _location(door: Door, base: str, *arguments: str) -> str:
    command = ["curl", "-fsS", "-o", "/dev/null", "-D", "-", *door.curl, *arguments]
    headers = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    [location] = [
        line.split(":", 1)[1].strip() for line in headers.splitlines() if line.lower().startswith("location:")
    ]
    return urllib.parse.urljoin(base, location)


def _pull(door: Door, layout: Path) -> float:
    return fetch(f"http://{door.host}/v2/bench/image/blobs/sha256:{_layer(layout).name}", "-L", *door.curl)[0]


def _skopeo_push(door: Door, layout: Path, folder: Path, number: int) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "blobs" / "sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    _fresh(layout, folder / "layer", number)
    _described(folder, _diff_id(layout))
    target = f"docker://{door.host}/bench/image:pushed"
    return _skopeo("copy", *door.skopeo("dest"), f"oci:{folder}:1", target)


def _skopeo_pull(door: Door, folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    return _skopeo("copy", *door.skopeo("src"), f"docker://{door.host}/bench/image:1", f"dir:{folder}")


def _skopeo(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run(["skopeo", "--insecure-policy", *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown: `ratio` is our speed against Debian's registry."""
    lines = [
        "",
        f"**pushing and pulling** one layer of {figures['bytes'] / MIB:.0f} MiB, beside Debian's docker-registry",
        "",
        "| | registry-verbs, s | docker-registry, s | ratio | |",
        "|---|---:|---:|---:|---|",
    ]
    for what, taken in figures.items():
        if what == "bytes":
            continue
        ours, theirs = taken["registry-verbs"], taken["docker-registry"]
        aim = "≥ 0.8" if "skopeo" not in what else ""
        lines.append(f"| {what} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} | {aim} |")
    return "\n".join(lines)
