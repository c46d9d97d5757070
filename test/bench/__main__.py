"""`python -m test.bench FILE`: prints tables and writes the same figures to FILE as JSON."""

import argparse
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from test.bench import pushing, serving
from test.bench.measuring import MIB, say
from test.bench.measuring import serving as server_of
from test.bench.merging import IMAGES, SCALES, measure_image, measure_scale, place, prepare, take_steps


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
    parser.add_argument("--runs", type=int, default=3, help="of each; peers run once (default 3)")
    parser.add_argument("--images", default=",".join(IMAGES), help="which of them (default: %(default)s)")
    parser.add_argument("--no-scale", action="store_true", help="leave out the images of 10,000 to 1,000,000 entries")
    parser.add_argument("--no-serving", action="store_true", help="leave out what is measured of serving")
    parser.add_argument("--no-pushing", action="store_true", help="leave out what is measured of pushing and pulling")
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
    with server_of(place("indexed")) as server:
        for name in chosen:
            say(f"measuring {name}")
            images[name] = measure_image(name, arguments.runs, server)
    scale = [] if arguments.no_scale else measure_scale(min(arguments.runs, 3))
    served = None if arguments.no_serving else serving.measure_serving(arguments.runs)
    pushed = None if arguments.no_pushing else pushing.measure_pushing(arguments.runs)
    here = machine()
    print(", ".join(f"{what} {value}" for what, value in here.items()))
    print(table(images, scale))
    if served:
        print(serving.table(served))
    if pushed:
        print(pushing.table(pushed))
    if arguments.file:
        rows = {
            name: image
            | {"rows": [asdict(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in image["rows"]]}
            for name, image in images.items()
        }
        arguments.file.write_text(
            json.dumps(
                {"machine": here, "images": rows, "scale": scale, "serving": served, "pushing": pushed}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
