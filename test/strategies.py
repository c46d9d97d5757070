"""Random stacks of layers, made so that things happen: few names, many conflicts.

The law: an example is a list of layers, base first, each a list of entries (`test.layers.Entry`), as the model takes
them; `archives` is how they are written. Whether a stack can be unpacked at all is for the model to say.
"""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st

from test import layers, model
from test.layers import Dialect, Entry

Stack = list[list[Entry]]


def examples(count: int) -> settings:
    """Return settings for `count` examples, the same each time, and ten times as many with the profile `explore`."""
    profile = settings.get_current_profile_name()
    return settings(settings.get_profile(profile), max_examples=count * 10 if profile == "explore" else count)


LONG = b"n" * 120
NAMES = [b"a", b"b", b"c", b"l"]
ODD_NAMES = [b"\xff\xfe", "ü".encode(), LONG, b" ", b"a=b\n"]

components = st.sampled_from(NAMES * 4 + ODD_NAMES)
paths = st.one_of(
    st.sampled_from(NAMES),
    st.lists(components, min_size=1, max_size=3).map(b"/".join),
)


@st.composite
def spelled(draw: st.DrawFn, path: bytes) -> bytes:
    """Return `path` as some archive may write it."""
    match draw(st.integers(0, 11)):
        case 0:
            return b"./" + path
        case 1:
            return b"/" + path
        case 2:
            return path.replace(b"/", b"//")
        case 3:
            return b"x/../" + path
        case 4:
            return path.replace(b"/", b"/./", 1)
        case _:
            return path


modes = st.sampled_from([0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o000, 0o7777])
ids = st.sampled_from([0, 0, 1000, 65534, 0o7777777, 0o10000000, 2**31])
times = st.sampled_from(
    [
        0,
        1,
        10**9,
        1_600_000_000 * 10**9,
        1_600_000_000_123_456_789,
        -(10**9),
        -1,
        -1_500_000_000,
        (8**11) * 10**9,
        1_700_000_000_500_000_000,
    ]
)
contents = st.one_of(
    st.sampled_from([b"", b"x", b"y" * 511, b"z" * 512, b"w" * 513, b"\0" * 1024]), st.binary(max_size=40)
)
symlink_targets = st.one_of(
    paths,
    paths.map(lambda path: b"/" + path),
    paths.map(lambda path: b"../" + path),
    paths.map(lambda path: path + b"/.."),
    st.sampled_from([b".", b"..", b"/", b"../..", b"nowhere", b"l", LONG + b"/" + b"\xff"]),
)


def xattrs(*namespaces: bytes) -> st.SearchStrategy[dict[bytes, bytes]]:
    keys = st.sampled_from([space + name for space in namespaces for name in (b"one", b"two")])
    return st.one_of(
        st.just({}),
        st.just({}),
        st.dictionaries(keys, st.sampled_from([b"", b"text", b"\0\xff\x01", b"a\nb=c", b"v" * 300]), max_size=2),
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Return one entry of any kind."""
    path = draw(paths)
    name = draw(spelled(path))
    mode, uid, gid, mtime_ns = draw(modes), draw(ids), draw(ids), draw(times)
    kind = draw(
        st.sampled_from(
            ["file"] * 6 + ["directory"] * 5 + ["symlink"] * 4 + ["hardlink"] * 4 + ["whiteout"] * 3 + ["opaque"] * 2
            + ["node", "root", "left over"]
        )
    )  # fmt: skip
    match kind:
        case "file":
            return layers.file(
                name,
                draw(contents),
                mode=mode,
                uid=uid,
                gid=gid,
                mtime_ns=mtime_ns,
                xattrs=draw(xattrs(b"user.", b"trusted.")),
            )
        case "directory":
            return layers.directory(
                name + draw(st.sampled_from([b"", b"/", b"/", b"/."])),
                mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=draw(xattrs(b"user.", b"trusted.")),
            )  # fmt: skip
        case "symlink":
            return layers.symlink(
                name, draw(symlink_targets), uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=draw(xattrs(b"trusted."))
            )
        case "hardlink":
            target = draw(paths)
            return layers.hardlink(name, draw(spelled(target)), mode=mode, uid=uid, mtime_ns=mtime_ns)
        case "whiteout":
            return layers.whiteout(name)
        case "opaque":
            return layers.opaque(draw(st.sampled_from([b"", name, name, name])))
        case "root":
            return layers.directory(draw(st.sampled_from([b".", b"./", b"/"])), mode=mode, uid=uid, mtime_ns=mtime_ns)
        case "left over":
            return layers.file(
                draw(st.sampled_from([b".wh..wh.plnk/1.2", b".wh..wh.aufs", b"a/.wh..wh.orph/x"])), b"junk"
            )
        case _:
            return draw(
                st.sampled_from(
                    [
                        layers.character_device(name, 1, 3, mode=mode, mtime_ns=mtime_ns),
                        layers.block_device(name, 8, 300, mode=mode, mtime_ns=mtime_ns),
                        layers.fifo(name, mode=mode, mtime_ns=mtime_ns),
                    ]
                )
            )


def aimed(stack: Stack) -> Stack:
    """Return the stack with its dangling hard links aimed at what is there, so that most stacks can be unpacked.

    A link for which there is no target at all becomes a file.
    """
    while True:
        tree = model.Tree()
        try:
            for layer in stack:
                tree.apply(layer)
        except model.Refused as refusal:
            if refusal.reason != "DanglingHardLink":
                return stack
            blamed = refusal.entry
            targets = sorted(path for path, listed in tree.listing().items() if listed.kind != "directory")
            better = (
                replace(blamed, link=targets[len(blamed.link) % len(targets)])
                if targets
                else layers.file(blamed.name, blamed.link)
            )
            stack = [[better if entry is blamed else entry for entry in layer] for layer in stack]
        else:
            return stack


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Entry], list[Entry]]:
    """Return what one layer and the next may hold so that a folder, a symlink to it and a change through it meet."""
    folder, link, name, other = draw(st.permutations([*NAMES[:3], b"l"]))
    below = [
        layers.directory(folder, mode=draw(modes)),
        layers.file(folder + b"/" + name, b"1"),
        layers.file(folder + b"/" + other + b"/" + name, b"2"),
        layers.symlink(
            link, draw(st.sampled_from([folder, b"/" + folder, b"./" + folder + b"/", other + b"/../" + folder]))
        ),
        layers.hardlink(other, draw(st.sampled_from([folder, link])) + b"/" + name),
    ]
    above = [
        layers.whiteout(link + b"/" + name),
        layers.whiteout(folder + b"/" + name),
        layers.whiteout(link),
        layers.opaque(link),
        layers.opaque(folder),
        layers.directory(link),
        layers.file(link + b"/" + name, b"3"),
        layers.file(link + b"/" + other, b"4"),
        layers.symlink(link, other),
        layers.hardlink(name, link + b"/" + name),
    ]
    changes = draw(st.lists(st.sampled_from(above), min_size=1, max_size=4, unique_by=lambda entry: entry.name))
    if draw(st.booleans()):  # a folder over the symlink, opaque as Docker writes it
        changes = (
            draw(st.permutations([layers.directory(link), draw(st.sampled_from([above[0], above[3]]))])) + changes[1:]
        )
    return below, changes


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """Return one to five layers; one in six is left with whatever is wrong with its hard links."""
    stack = draw(st.lists(st.lists(entries(), max_size=8), min_size=1, max_size=3))
    if draw(st.integers(0, 2)) == 2:
        at = draw(st.integers(0, len(stack)))
        stack[at:at] = draw(scenes())
    return stack if draw(st.integers(0, 5)) == 5 else aimed(stack)


dialects: st.SearchStrategy[Dialect] = st.sampled_from(["pax", "gnu"])


def archives(stack: Stack, dialect: Dialect = "pax") -> list[bytes]:
    """Return the layers of a stack as tars, base first."""
    return [layers.layer(*entries, dialect=dialect) for entries in stack]
