"""Where everything stands in an ext4 file system that holds a root file system.

The law: the layout is a pure function of the entries, of how much is to be spare, and of 32 bytes that make the file
system's identity; after it every byte is known but those of the files, and where those stand in the tar. All tables
come first; then directories; then the files in the order of the tar, so that it is read once, front to back; then the
journal and the trees of files in very many pieces; then what is free. Copies of the superblock stand in between.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, partial
from heapq import merge
from itertools import groupby, islice

from formats.ext4structs import (
    BLOCK,
    BLOCKS_PER_GROUP,
    DESCRIPTOR,
    EXTENTS_IN_BLOCK,
    EXTENTS_IN_INODE,
    FIRST_INODE,
    INLINE_TARGET,
    INODE,
    INODES_PER_BLOCK,
    JOURNAL_INODE,
    MAX_EXTENT,
    MAX_LINKS,
    MAX_NAME,
    ROOT_INODE,
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFREG,
    Extent,
    Group,
    NotOnExt4,
    attributes,
    device_block,
    directory,
    directory_length,
    extent_leaves,
    extent_root,
    inode,
    journal,
    superblock,
)
from util.layerindex import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, FILE, LINK, SYMLINK, shown
from util.written import Written

_LOST_AND_FOUND = b"lost+found"
_KINDS = {
    FILE: S_IFREG,
    SYMLINK: S_IFLNK,
    CHARACTER: S_IFCHR,
    BLOCK_DEVICE: S_IFBLK,
    DIRECTORY: S_IFDIR,
    FIFO: S_IFIFO,
}
_BYTES_PER_INODE = 16 << 10  # of what is spare, as mke2fs counts
_JOURNAL_BLOCKS = 1024  # of a small file system; four times as many of a larger one, as mke2fs takes
_SMALL = 32768
_MOST_BLOCKS = 1 << 32
_MOST_EXTENTS = EXTENTS_IN_INODE * EXTENTS_IN_BLOCK
_PIECE = 64  # inodes rendered at once


@dataclass(slots=True, eq=False)
class Node:
    """An inode, and what it takes. `payload` is where a file's content stands in the tar."""

    mode: int
    uid: int = 0
    gid: int = 0
    time: tuple[int, int] = (0, 0)
    size: int = 0
    payload: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    own_attributes: bytes = b""
    attribute_block: bytes = b""
    number: int = 0
    links: int = 1
    parent: "Node | None" = None
    children: "list[tuple[bytes, Node]] | None" = None
    extents: list[Extent] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    attribute_at: int = 0

    @property
    def kind(self) -> int:
        return self.mode & 0xF000

    @property
    def blocks(self) -> int:
        """How many blocks its content takes."""
        return -(-self.size // BLOCK)

    def rendered(self) -> bytes:
        """Return the inode."""
        mapped = self.kind in (S_IFREG, S_IFDIR) or bool(self.extents)
        if mapped:
            block = extent_root(self.extents, self.leaves)
        elif self.kind == S_IFLNK:
            block = self.target
        else:
            block = device_block(*self.device) if self.kind in (S_IFCHR, S_IFBLK) else b""
        taken = sum(count for _, count in self.extents) + len(self.leaves) + bool(self.attribute_at)
        return inode(
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            links=self.links if self.links < MAX_LINKS or self.kind != S_IFDIR else 1,
            size=self.size,
            time=self.time,
            sectors=taken * (BLOCK // 512),
            block=block,
            mapped=mapped,
            attributes=self.own_attributes,
            attribute_block=self.attribute_at,
        )


class Tree:
    """The inodes of a root file system, in the order of their numbers. Raises NotOnExt4."""

    def __init__(self, entries: Iterable[Written]) -> None:
        root = Node(S_IFDIR | 0o755, children=[])
        root.parent, root.number, root.links = root, ROOT_INODE, 2
        self.nodes: list[Node] = []
        """All but the reserved ones; the first has the number FIRST_INODE."""
        self.root = root
        found: dict[bytes, Node] = {b"": root}
        for entry in entries:
            if not entry.path:
                _describe(root, entry)
                continue
            folder, _, name = entry.path.rpartition(b"/")
            parent = found[folder]
            if len(name) > MAX_NAME:
                raise NotOnExt4(f"the name of {shown(entry.path)} is longer than the {MAX_NAME} bytes that ext4 has")
            if entry.kind == LINK:
                node = found[entry.link]
                node.links += 1
                if node.links > MAX_LINKS:
                    raise NotOnExt4(f"{shown(entry.link)} has more names than the {MAX_LINKS} that ext4 has")
            else:
                node = Node(_KINDS[entry.kind])
                _describe(node, entry)
                self.nodes.append(node)
                if entry.kind == DIRECTORY:
                    node.parent, node.children, node.links = parent, [], 2
                    parent.links += 1
            found[entry.path] = node
            if parent.children is not None:
                parent.children.append((name, node))
        self._find_lost_and_found(found.get(_LOST_AND_FOUND))
        for number, node in enumerate(self.nodes, FIRST_INODE):
            node.number = number
        for node in self.folders():
            node.size = BLOCK * directory_length(name for name, _ in node.children or ())

    def _find_lost_and_found(self, node: Node | None) -> None:
        """Have the folder that a check of the file system wants, with the first number."""
        if node is None:
            node = Node(S_IFDIR | 0o700, links=2, parent=self.root, children=[])
            self.root.links += 1
            if self.root.children is not None:
                self.root.children.append((_LOST_AND_FOUND, node))
        elif node.kind != S_IFDIR:
            raise NotOnExt4(f"{shown(_LOST_AND_FOUND)} is no directory, and in an ext4 file system it has to be one")
        else:
            self.nodes.remove(node)
        self.nodes.insert(0, node)

    def folders(self) -> Iterator[Node]:
        """Yield all directories, the root first."""
        yield self.root
        yield from (node for node in self.nodes if node.children is not None)


def _describe(node: Node, entry: Written) -> None:
    node.mode = _KINDS[entry.kind] | (0o777 if entry.kind == SYMLINK else entry.mode)
    node.uid, node.gid = entry.uid, entry.gid
    node.time = (entry.mtime, 0)
    node.device = entry.device
    if entry.kind == FILE:
        node.size, node.payload = entry.size, entry.payload
    elif entry.kind == SYMLINK:
        node.target, node.size = entry.link, len(entry.link)
        if len(entry.link) >= BLOCK:
            raise NotOnExt4(f"the target of the symlink {shown(entry.path)} is longer than ext4 has room for")
    if entry.records:
        exact = entry.records.get(b"mtime")
        if exact is not None:
            node.time = (entry.mtime, math.floor((Decimal(exact.decode()) - entry.mtime) * 10**9))
        node.own_attributes, node.attribute_block = attributes(entry.records, entry.path)


@dataclass(frozen=True, slots=True)
class Piece:
    """`blocks` blocks from `block` on, which `render` yields."""

    block: int
    blocks: int
    render: Callable[[], Iterator[bytes]]


class Layout:
    """The file system of `tree` with at least `spare` free bytes. Raises NotOnExt4 for one that is too large."""

    def __init__(self, tree: Tree, *, spare: int, identity: bytes) -> None:
        self._tree = tree
        self._identity = identity
        self.contents = [node for node in tree.nodes if node.kind == S_IFREG and node.size]
        """The files that have content, in the order of the tar."""
        self._journal = Node(S_IFREG | 0o600, number=JOURNAL_INODE)
        folders = list(tree.folders())
        self._targets = [node for node in tree.nodes if node.kind == S_IFLNK and node.size > INLINE_TARGET]
        self._attributed = [node for node in (tree.root, *tree.nodes) if node.attribute_block]
        content = sum(node.blocks for node in self.contents)
        needed = sum(node.blocks for node in folders) + len(self._targets) + len(self._attributed) + content
        spare_blocks = -(-spare // BLOCK)
        self._journal.size = BLOCK * (_JOURNAL_BLOCKS if needed + spare_blocks < _SMALL else 4 * _JOURNAL_BLOCKS)
        inodes = FIRST_INODE - 1 + len(tree.nodes) + spare // _BYTES_PER_INODE
        self._least = needed + self._journal.blocks + spare_blocks
        groups = -(-(needed + spare_blocks) // BLOCKS_PER_GROUP) or 1
        most = _MOST_BLOCKS // BLOCKS_PER_GROUP
        while groups <= most and not self._fits(folders, groups, inodes, spare_blocks):
            groups += 1
        if groups > most:
            raise NotOnExt4(
                f"the root file system, with {spare} bytes to spare, is larger than an ext4 file system of 16 TiB"
            )

    def _fits(self, folders: Sequence[Node], groups: int, inodes: int, spare: int) -> bool:
        """Lay all out in so many groups, and tell whether they were enough."""
        per_group = -(-inodes // groups)
        self.inodes_per_group = per_group + -per_group % INODES_PER_BLOCK
        if self.inodes_per_group > BLOCKS_PER_GROUP:
            return False
        self._table = self.inodes_per_group // INODES_PER_BLOCK
        self._copy = 1 + -(-groups * DESCRIPTOR // BLOCK)
        if self._copy + groups * (2 + self._table) + self._least > groups * BLOCKS_PER_GROUP:
            return False  # not even without a gap; to lay it out takes long where there are many groups
        space = _Space(groups, self._copy)
        self._bitmaps = space.together(2 * groups)
        self._tables = [space.together(self._table) for _ in range(groups)]
        for node in (*folders, *self._targets):
            node.extents = space.extents(node.blocks)
        for node in self._attributed:
            node.attribute_at = space.together(1)
        self.content_begin = space.at
        for node in self.contents:
            node.extents = space.extents(node.blocks)
            if len(node.extents) > _MOST_EXTENTS:
                raise NotOnExt4(f"a file of {node.size} bytes is larger than is laid out here")
        self.content_end = space.at
        self._journal.extents = space.extents(self._journal.blocks)
        self._split = [node for node in (*self.contents, *folders) if len(node.extents) > EXTENTS_IN_INODE]
        for node in self._split:
            leaves = -(-len(node.extents) // EXTENTS_IN_BLOCK)
            node.leaves = [space.together(1) for _ in range(leaves)]
        self.end = space.at
        self.copies = space.copies
        # The last group has its own copy, and something besides.
        self.blocks = max(space.after(spare), (groups - 1) * BLOCKS_PER_GROUP + self._copy + 64)
        self._holes = space.holes
        return self.blocks <= groups * BLOCKS_PER_GROUP

    @property
    def size(self) -> int:
        """The bytes of the whole file system."""
        return self.blocks * BLOCK

    # --- What stands where ---

    def pieces(self) -> Iterator["Piece"]:
        """Yield all that is known, front to back; between stands the content of files, and zeros."""
        return merge(self._own_pieces(), self._copies(), key=lambda piece: piece.block)

    def _own_pieces(self) -> Iterator["Piece"]:
        yield Piece(0, self._copy, self._front)
        yield Piece(self._bitmaps, len(self._tables), lambda: iter(self._block_bitmaps))
        yield Piece(self._bitmaps + len(self._tables), len(self._tables), lambda: iter(self._inode_bitmaps))
        for group, table in enumerate(self._tables):
            yield Piece(table, self._table, partial(self._inodes, group))
        for node in self._tree.folders():
            done = 0
            for start, count in node.extents:
                yield Piece(start, count, partial(self._directory, node, done, done + count))
                done += count
        for node in self._targets:
            yield Piece(node.extents[0][0], 1, partial(iter, [node.target.ljust(BLOCK, b"\0")]))
        for node in self._attributed:
            yield Piece(node.attribute_at, 1, partial(iter, [node.attribute_block]))
        yield Piece(self._journal.extents[0][0], 1, partial(iter, [journal(self._journal.blocks)]))
        for node in self._split:
            for leaf, block in zip(node.leaves, extent_leaves(node.extents), strict=True):
                yield Piece(leaf, 1, partial(iter, [block]))

    def _copies(self) -> Iterator["Piece"]:
        for block in self.copies:
            yield Piece(block, self._copy, partial(self._copied, block // BLOCKS_PER_GROUP))

    def _copied(self, group: int) -> Iterator[bytes]:
        yield self._superblock(group).ljust(BLOCK, b"\0")
        yield self._descriptors

    def _front(self) -> Iterator[bytes]:
        yield (bytes(1024) + self._superblock(0)).ljust(BLOCK, b"\0")
        yield self._descriptors

    def _superblock(self, group: int) -> bytes:
        return superblock(
            group=group,
            blocks=self.blocks,
            inodes_per_group=self.inodes_per_group,
            groups=self._groups,
            identity=self._identity,
            journal_block=extent_root(self._journal.extents, ()).ljust(60, b"\0"),
            journal_size=self._journal.size,
        )

    @cached_property
    def _descriptors(self) -> bytes:
        return b"".join(group.descriptor() for group in self._groups).ljust((self._copy - 1) * BLOCK, b"\0")

    def _directory(self, node: Node, first: int, stop: int) -> Iterator[bytes]:
        """Yield those blocks of a directory."""
        parent = node.parent or node
        children = ((name, child.number, child.mode) for name, child in node.children or ())
        return islice(directory(node.number, parent.number, children), first, stop)

    def _inodes(self, group: int) -> Iterator[bytes]:
        """Yield the inode table of the group, in pieces."""
        first = group * self.inodes_per_group + 1
        last = FIRST_INODE + len(self._tree.nodes)
        reserved = {ROOT_INODE: self._tree.root, JOURNAL_INODE: self._journal}
        for begin in range(first, first + self.inodes_per_group, _PIECE):
            parts: list[bytes] = []
            for number in range(begin, min(begin + _PIECE, first + self.inodes_per_group)):
                if FIRST_INODE <= number < last:
                    parts.append(self._tree.nodes[number - FIRST_INODE].rendered())
                else:
                    parts.append(reserved[number].rendered() if number in reserved else bytes(INODE))
            yield b"".join(parts)

    @cached_property
    def _block_bitmaps(self) -> list[bytes]:
        """Return which blocks of each group are taken; those beyond the end are."""
        free, copies = [*self._holes, (self.end, self.blocks - self.end)], {*self.copies}
        all_taken, all_free, bitmaps = b"\xff" * BLOCK, bytes(BLOCK), []  # most groups are one of them, and share it
        for begin in range(0, len(self._tables) * BLOCKS_PER_GROUP, BLOCKS_PER_GROUP):
            here = [
                (max(start - begin, 0), min(start + count - begin, BLOCKS_PER_GROUP))
                for start, count in free
                if start < begin + BLOCKS_PER_GROUP and start + count > begin
            ]
            if not here:
                bitmaps.append(all_taken)
            elif here == [(0, BLOCKS_PER_GROUP)] and begin not in copies:
                bitmaps.append(all_free)
            else:
                used = bytearray(b"\1" * BLOCKS_PER_GROUP)
                for first, stop in here:
                    used[first:stop] = bytes(stop - first)
                if begin in copies:
                    used[: self._copy] = b"\1" * self._copy
                bitmaps.append(_bits(used))
        return bitmaps

    @cached_property
    def _inode_bitmaps(self) -> list[bytes]:
        """Return which inodes of each group are taken; those that it has not are."""
        taken, bitmaps = FIRST_INODE - 1 + len(self._tree.nodes), []
        rendered: dict[int, bytes] = {}
        for _ in self._tables:
            here = min(taken, self.inodes_per_group)
            taken -= here
            if here not in rendered:
                free = self.inodes_per_group - here
                rendered[here] = _bits(b"\1" * here + bytes(free) + b"\1" * (BLOCKS_PER_GROUP - here - free))
            bitmaps.append(rendered[here])
        return bitmaps

    @cached_property
    def _groups(self) -> list[Group]:
        numbers = sorted(node.number for node in self._tree.folders())
        per_group = self.inodes_per_group
        folders = {group: len(list(found)) for group, found in groupby(numbers, lambda each: (each - 1) // per_group)}
        bitmaps, inodes = self._block_bitmaps, self._inode_bitmaps
        return [
            Group(
                self._bitmaps + group,
                self._bitmaps + len(self._tables) + group,
                table,
                BLOCKS_PER_GROUP - int.from_bytes(bitmaps[group]).bit_count(),
                BLOCKS_PER_GROUP - int.from_bytes(inodes[group]).bit_count(),
                folders.get(group, 0),
            )
            for group, table in enumerate(self._tables)
        ]


class _Space:
    """Blocks that are given out in their order, those left out that copies of the superblock need."""

    def __init__(self, groups: int, copy: int) -> None:
        self.copies = [group * BLOCKS_PER_GROUP for group in range(1, groups) if _has_copy(group)]
        self.holes: list[Extent] = []
        self.at = copy
        self._copy = copy
        self._waiting = list(reversed(self.copies))

    def together(self, count: int) -> int:
        """Return the first of `count` neighbours."""
        while self._waiting and self.at + count > self._waiting[-1]:
            copy = self._waiting.pop()
            if copy > self.at:
                self.holes.append((self.at, copy - self.at))
            self.at = copy + self._copy
        self.at += count
        return self.at - count

    def extents(self, count: int) -> list[Extent]:
        """Return `count` blocks, in pieces that an extent can name."""
        found: list[Extent] = []
        while count:
            if self._waiting and self.at == self._waiting[-1]:
                self._waiting.pop()
                self.at += self._copy
                continue
            room = self._waiting[-1] - self.at if self._waiting else count
            length = min(count, room, MAX_EXTENT)
            found.append((self.at, length))
            self.at += length
            count -= length
        return found

    def after(self, count: int) -> int:
        """Return where `count` more blocks would end; gives none out."""
        at = self.at
        for copy in reversed(self._waiting):
            if at + count <= copy:
                break
            count -= copy - at
            at = copy + self._copy
        return at + count


def _has_copy(group: int) -> bool:
    """Tell whether a group has a copy of the superblock: 1, and the powers of 3, 5 and 7."""
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return group == 1


def _bits(flags: bytes | bytearray) -> bytes:
    """Return a bit for each byte that is 0 or 1, the lowest first."""
    # Read as digits of a number, the first flag is the highest one; turned round, it is the lowest.
    digits = bytes(flags[::-1]).translate(_DIGITS)
    return int(digits, 2).to_bytes(len(flags) // 8, "little")


_DIGITS = bytes((48, 49)) + bytes(254)
