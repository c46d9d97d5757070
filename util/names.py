"""What namespaces, repositories, tags, users and robots may be called.

The law: a namespace, a repository and a tag are named as the distribution-spec has it; who can log in, an organization
and a robot as Quay has it, which is narrower: every such name is a namespace's too.
"""

import re

from util.problem import Malformed

MAX_NAME = 255
"""How many characters a namespace, or a repository within one, may have."""

_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_NAMESPACE = re.compile(_PART)
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_USERNAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_ROBOT_SIGN = "+"


class InvalidName(Malformed):
    """A name that a namespace, a repository, a tag, a user or a robot cannot have."""

    code = "NAME_INVALID"


def check_namespace(namespace: str) -> None:
    """Raise InvalidName unless a namespace may be called so."""
    if not _NAMESPACE.fullmatch(namespace) or len(namespace) > MAX_NAME:
        raise InvalidName(
            f"{namespace!r} is no name for a namespace: lower-case letters, digits and single .-_ between"
        )


def check_repository(repository: str) -> None:
    """Raise InvalidName unless a repository may be called so, within its namespace."""
    if not _REPOSITORY.fullmatch(repository) or len(repository) > MAX_NAME:
        raise InvalidName(
            f"{repository!r} is no name for a repository: lower-case letters, digits and single .-_/ between"
        )


def check_tag(tag: str) -> None:
    """Raise InvalidName unless a tag may be called so."""
    if not _TAG.fullmatch(tag):
        raise InvalidName(f"{tag!r} is no tag: at most 128 letters, digits and ._-, the first no dot or dash")


def check_username(name: str) -> None:
    """Raise InvalidName unless a user or an organization may be called so, or a robot after its owner's name."""
    if not _USERNAME.fullmatch(name) or not 2 <= len(name) <= MAX_NAME:
        raise InvalidName(
            f"{name!r} is no name for a user: 2 to {MAX_NAME} lower-case letters, digits and single .-_ between"
        )


def robot_owner(name: str) -> str | None:
    """Return who owns the robot `name`, None where that is no robot's name."""
    owner, sign, _ = name.partition(_ROBOT_SIGN)
    return owner if sign else None


def check_robot(name: str) -> str:
    """Return who owns the robot `name`. Raises InvalidName unless it is OWNER+NAME, both as users are called."""
    owner, sign, short = name.partition(_ROBOT_SIGN)
    if not sign or len(name) > MAX_NAME:
        raise InvalidName(f"{name!r} is no name for a robot: OWNER+NAME")
    check_username(owner)
    check_username(short)
    return owner
