"""What a merged tar holds, entry by entry, before a byte of it is written: for formats that are no tar themselves.

The law: this is the plan's own order, and the places are those of the tar that the plan is written to.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from util.layerindex import DIRECTORY, LINK, SYMLINK, LayerIndex
from util.mergeplan import How, MergePlan, Run, Step
from util.tarheader import padding


class Written(NamedTuple):
    """One entry. `path` has neither the path prefix nor a slash at its end; the root's is empty.

    `kind` is a typeflag (util/layerindex.py). Of a LINK only `path`, `kind` and `link` count, which is the first name
    of the file that it is another name of; a symlink's `link` is its target as it stands. `size` bytes from `payload`
    of the tar are a file's content. `mtime` is in whole seconds; `records` are the PAX records beside all this:
    extended attributes, and an mtime with a fraction.
    """

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    payload: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    records: Mapping[bytes, bytes] = {}


def written(plan: MergePlan) -> Iterator[Written]:
    """Yield the entries of the tar that `plan` is written to, in its order. The root comes first, if it is in it."""
    root = plan.root()
    if root is not None:
        yield _of_step(plan, root, 0)
    position = len(plan.head)
    for layer in range(len(plan.sizes)):
        index = plan.index(layer)
        for step in plan.steps(layer):
            if isinstance(step, Step):
                yield _of_step(plan, step, position + len(plan.header(step)))
                position += plan.length(step)
            elif step.how is How.RENDER:
                for entry, length in enumerate(plan.lengths(layer, step), step.first):
                    size = index.file_size(entry)
                    position += length
                    yield _of_entry(index, entry, index.names[entry], position - size - padding(size))
            else:
                yield from _of_copied(index, step, position)
                position += index.end(step.stop - 1) - index.starts[step.first]


def _of_copied(index: LayerIndex, run: Run, position: int) -> Iterator[Written]:
    shift = position - index.starts[run.first]
    for entry in range(run.first, run.stop):
        yield _of_entry(index, entry, index.names[entry], index.payloads[entry] + shift)


def _of_step(plan: MergePlan, step: Step, payload: int) -> Written:
    if step.link is not None:
        return Written(step.path, LINK, 0, 0, 0, 0, link=step.link)
    if step.entry < 0:
        return Written(step.path, DIRECTORY, 0o755, 0, 0, 0)
    return _of_entry(*plan.located(step.entry), step.path, payload)


def _of_entry(index: LayerIndex, entry: int, path: bytes, payload: int) -> Written:
    kind = index.kinds[entry]
    return Written(
        path,
        kind,
        index.modes[entry],
        index.uids[entry],
        index.gids[entry],
        index.mtimes[entry],
        index.file_size(entry),
        payload,
        index.links[entry] if kind in (LINK, SYMLINK) else b"",
        index.devices.get(entry, (0, 0)),
        index.records.get(entry, {}),
    )
