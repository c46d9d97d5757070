"""What is measured of merging: each verb with and without layer indexes, on the machine's own files, and the peers.

The law: everything is a ratio to one limit: each layer of the image inflated once by `igzip -dc`, one after the other.
Images are kept under var/bench.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from test import machineimage
from test.bench.measuring import PROGRAM, WORK, Row, Run, Server, Subject, measure, measure_first_byte, say, take

IMAGES: Mapping[str, Callable[[Path], None]] = {
    "big": machineimage.build_big,
    "many": machineimage.build_many,
    "deep": machineimage.build_deep,
}
SCALES = (10_000, 100_000, 1_000_000)
COMPRESSIONS = ("none", "gzip", "zstd")
State = Literal["indexed", "bare"]


def place(state: State) -> dict[str, str]:
    """Return the environment of a registry. Nothing derived is kept in it: every run makes its image anew."""
    return {"VERBS_DATA_DIR": str(WORK / state), "REGISTRY_STATE": "readonly"}


def forget_indexes() -> None:
    shutil.rmtree(WORK / "bare" / "storage" / "verbs", ignore_errors=True)


def derive(image: str, verb: str, compression: str) -> list[str]:
    return [PROGRAM, "derive", verb, f"bench/{image}:1", "--compression", compression, "-o", "-"]


def indexed(image: str, verb: str, compression: str, *, once: bool = False, **row: Any) -> Subject:
    command = derive(image, verb, compression)
    return Subject(
        Row(f"{verb}, {compression}", **row),
        partial(measure, command, place("indexed")),
        partial(measure_first_byte, command, place("indexed")),
        once=once,
    )


def bare(image: str, verb: str, compression: str, **row: Any) -> Subject:
    def run() -> Run:
        forget_indexes()
        return measure(derive(image, verb, compression), place("bare"))

    return Subject(Row(f"{verb}, {compression}, no index yet", **row), run)


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
            indexed(image, verb, compression, once=True, **memory)
            for verb in ("rootfs", "aci")
            for compression in COMPRESSIONS[1:]
        ),
        indexed(image, "squash", "zstd", once=True, **memory),
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
    from util.layerreader import read_layer_index
    from util.storedindex import restored_from, stored
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
                dumps.append(b"".join(stored(read_layer_index(decompressed(blob), layer=layer.name))))
    with step("load"):
        loaded = [restored_from(dump, layer=layer.name) for dump, layer in zip(dumps, layers, strict=True)]
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


def opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")
