"""The command `analyze`: what the layers of an image bring and waste, for people, or as JSON.

The law: as in commands.py, to which it belongs.
"""

import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from endpoints.commandline import ReadConfiguration, echo, examples, image_name, platform_of, services_of
from endpoints.rules import ImageName
from util.printable import printable

if TYPE_CHECKING:
    from endpoints.analyzing import AnalyzedImage, AnalyzedLayer
    from util.platform import Platform

_SHELL = ("/bin/sh -c #(nop) ", "/bin/sh -c ", "RUN /bin/sh -c ")
_BUILDKIT = " # buildkit"
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_NAMES = 3


@click.command(
    epilog=examples(
        "registry-verbs analyze acme/app:1.0",
        "registry-verbs analyze acme/app:1.0 --platform linux/arm64 --all",
        "registry-verbs analyze acme/app:1.0 --json | jq .saved_percent",
    )
)
@click.argument("image", metavar="NAMESPACE/REPOSITORY:TAG", callback=image_name)
@click.option(
    "--platform", callback=platform_of, metavar="OS/ARCH[/VARIANT]", help="Of an image for several platforms."
)
@click.option("--all", "all_", is_flag=True, help="List all wasted paths.  [default: the 20 largest]")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON document, as the API has it.")
@click.pass_obj
def analyze(
    read: ReadConfiguration, *, image: ImageName, platform: "Platform | None", all_: bool, as_json: bool
) -> None:
    """Tell what the layers of an image bring and waste.

    For each layer: how much of it is in the merged image, and which layers above hide the rest; the paths that waste
    most; what squashing saves. Nothing is unpacked: the layers' indexes know it all.
    """
    import json

    from endpoints.analyzing import TOP, analysis_of, document

    services = services_of(read)
    most = None if all_ else TOP
    analyzed = analysis_of(services, services.permission, image, platform)
    if as_json:
        click.echo(json.dumps(document(analyzed, most=most), indent=2))  # which escapes all but ASCII
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in map(printable, _lines(analyzed, most)):
        echo(line if width is None or len(line) <= width else line[: width - 1] + "…")


def _lines(analyzed: "AnalyzedImage", most: int | None) -> Iterator[str]:
    found = analyzed.found
    yield f"{analyzed.name}  {analyzed.image.platform}  {analyzed.image.manifest_digest}"
    yield ""
    yield f"{'layer':>5}  {'stored':>10}  {'files':>9}  {'bytes':>10}  {'kept':>10}  {'wasted':>10}  created by"
    for layer in analyzed.layers:
        yield from _layer(layer)
    if found.wasted:
        yield ""
        yield f"{'wasted':>10}  {'times':>5}  {'layers':<12}  path"
    for path in found.wasted[:most]:
        layers = ",".join(str(layer + 1) for layer in path.layers)
        yield f"{_size(path.size):>10}  {path.times:>5}  {layers:<12}  {_shown(path.path)}"
    if most is not None and len(found.wasted) > most:
        yield f"{'':>10}  and {len(found.wasted) - most} more (--all)"
    yield ""
    yield f"files       {_size(found.size)}, of which {_size(found.shadowed_size)} are not in the image"
    yield f"stored      {_size(analyzed.stored_size)}"
    yield f"unpacked    {_size(found.tar_size)} of tar"
    less = "less" if analyzed.saved_size >= 0 else "more"
    yield (
        f"squashed    {_size(found.squashed_size)} of tar: {_size(abs(analyzed.saved_size))} {less},"
        f" {abs(analyzed.saved_percent):.1f} %"
    )
    yield f"efficiency  {100 * found.efficiency:.1f} % (as dive counts)"


def _layer(layer: "AnalyzedLayer") -> Iterator[str]:
    use = layer.use
    step = "" if layer.step is None else layer.step.created_by or layer.step.comment or ""
    yield (
        f"{layer.number:>5}  {_size(layer.stored_size):>10}  {use.files:>9}  {_size(use.size):>10}"
        f"  {_size(use.kept_size):>10}  {_size(use.shadowed_size):>10}  {_command(step)}".rstrip()
    )
    for shadow in use.shadows:
        by = "itself" if shadow.by + 1 == layer.number else f"layer {shadow.by + 1}"
        files = f"{shadow.files} file{'' if shadow.files == 1 else 's'}"
        yield f"{'':>7}{_size(shadow.size)} in {files}: {_WORDS[shadow.how]} {by}"
    if use.idle:
        names = ", ".join(_shown(name) for name in use.idle[:_NAMES]) + (", …" if len(use.idle) > _NAMES else "")
        yield f"{'':>7}{len(use.idle)} of {use.whiteouts} whiteouts hide nothing: {names}"


_WORDS = {
    "opaque": "in directories emptied by",
    "whiteout": "deleted by",
    "replaced": "replaced by",
    "rewritten": "rewritten, of the same size and time, by",
}


def _command(text: str) -> str:
    """Return a line of the history without what the builder has put around it."""
    text = " ".join(text.split()).removesuffix(_BUILDKIT)
    for shell in _SHELL:
        text = text.removeprefix(shell)
    return text


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _size(size: int) -> str:
    if size < 1 << 10:
        return f"{size} B"
    value, units = size / (1 << 10), list(_UNITS)
    while value >= 1000 and len(units) > 1:
        value /= 1 << 10
        units.pop(0)
    return f"{value:.1f} {units[0]}"
