"""Who a container of an image runs as, in numbers: `config.User`, resolved in the image's own etc/passwd and etc/group.

The law: a number is taken as it is said, a name is looked up in the image and nowhere else, and one that is not there
is refused. OCI image-spec, config.md, "User", and conversion.md, "Config.User".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from formats.tarimageformatter import Rootfs
from util.problem import Inexpressible

_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_LAST_ID = (1 << 32) - 2  # the one after it means none
_DIGITS = len(str(_LAST_ID))


class UserNotInImage(Inexpressible):
    """A user or a group that the image says it runs as, and does not have."""

    code = "USER_UNKNOWN"


@dataclass(frozen=True, slots=True)
class User:
    """A user, the group, and the further groups that only a user who is said by name alone has."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def user_of(said: str, rootfs: Rootfs) -> User:
    """Return who `said` means: `user`, `uid`, `user:group` in names and numbers; root where it says nothing.

    The group of a number that etc/passwd does not have is 0, as runtimes have it. Raises UserNotInImage.
    """
    user, _, group = said.partition(":")
    passwd = [(name, _id(uid), _id(gid)) for name, _, uid, gid in _lines(rootfs, b"etc/passwd", 4)]
    named = user and not _NUMBER.fullmatch(user)
    uid = None if named else _number(user or "0", said)
    entry = next((each for each in passwd if (each[0] == user if named else each[1] == uid)), None)
    if named:
        if entry is None or entry[1] is None or entry[2] is None:
            raise UserNotInImage(f"config.User is {said!r}, and the image's etc/passwd has no user {user!r}")
        uid = entry[1]
    gid = entry[2] if entry is not None else None
    groups: tuple[int, ...] = ()
    members = [(name, _id(gid), users.split(",")) for name, _, gid, users in _lines(rootfs, b"etc/group", 4)]
    if group:
        gid = _number(group, said) if _NUMBER.fullmatch(group) else next((i for n, i, _ in members if n == group), None)
        if gid is None:
            raise UserNotInImage(f"config.User is {said!r}, and the image's etc/group has no group {group!r}")
    elif named:
        further = dict.fromkeys(i for _, i, users in members if i is not None and user in users)
        groups = tuple(each for each in further if each != gid)
    return User(uid or 0, gid or 0, groups)


def _lines(rootfs: Rootfs, path: bytes, fields: int) -> Iterator[list[str]]:
    """Yield the first `fields` of each line that has as many."""
    for line in (rootfs.kept_file(path) or b"").decode(errors="surrogateescape").splitlines():
        values = line.strip().split(":")
        if len(values) >= fields:
            yield values[:fields]


def _id(text: str) -> int | None:
    # More digits than any id has would be more than Python reads, too.
    if not _NUMBER.fullmatch(text) or len(text.lstrip("0")) > _DIGITS or int(text.lstrip("0") or "0") > _LAST_ID:
        return None
    return int(text.lstrip("0") or "0")


def _number(text: str, said: str) -> int:
    number = _id(text)
    if number is None:
        raise UserNotInImage(f"config.User is {said!r}, and there can be no id {text}")
    return number
