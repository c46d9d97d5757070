"""Who may do what with a repository: the question a host answers, and our own answer where there is no host.

The law: the question is asked before anything else is looked at, and a repository that does not exist is asked for like
a private one. So who may not read learns neither that a repository exists nor that it does not. A bearer token never
gives more than its account has at that moment, nor more than it was signed for.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, cast

from util.problem import Problem

if TYPE_CHECKING:
    from data.accounts import Accounts
    from endpoints.caller import Caller


class Action(StrEnum):
    """What somebody wants to do with a repository."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    ADMIN = "admin"
    CREATE = "create"
    """Make the repository, which is not there."""


class Denied(Problem):
    """Who asks may not do that with the repository, if there is one."""

    code = "DENIED"


class Unauthenticated(Denied):
    """Nobody has said who asks; with credentials it might be allowed."""

    code = "UNAUTHORIZED"


class InsufficientScope(Unauthenticated):
    """A bearer token that was signed for less than its account has; another one might do."""


class Permission(Protocol):
    """A permission check. It runs within the request, so it may look at the host's own session or user."""

    def __call__(self, namespace: str, repository: str, /, *, public: bool, action: Action = Action.READ) -> bool:
        """Tell whether who asks may do that with `namespace`/`repository`; `public` is false also where there is none.

        Only True allows. To ask for credentials rather than to refuse, raise Unauthenticated.
        """


class ReadPermission(Protocol):
    """A host's permission check that knows of nothing but reading."""

    def __call__(self, namespace: str, repository: str, /, *, public: bool) -> bool:
        """Tell whether who asks may read `namespace`/`repository`; else as Permission."""


def of_host(permission: Permission | ReadPermission) -> Permission:
    """Return a host's own check as one of every action; one that only knows of reading allows nothing else."""
    parameters = inspect.signature(permission).parameters
    if "action" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return cast("Permission", permission)

    def reads(namespace: str, repository: str, /, *, public: bool, action: Action = Action.READ) -> bool:
        return action is Action.READ and permission(namespace, repository, public=public) is True

    return reads


@dataclass(frozen=True, slots=True)
class AccountPermission:
    """Our own answer: by the role of who asks, and by the token where one is brought.

    Public repositories are everybody's to read, if anybody may come at all.
    """

    accounts: "Accounts"
    caller: "Callable[[], Caller]"
    anonymous_access: bool = True

    def __call__(self, namespace: str, repository: str, /, *, public: bool, action: Action = Action.READ) -> bool:
        """Answer as Permission does. Raises Unauthenticated, what `caller` raises, and RegistryUnavailable."""
        caller = self.caller()
        if caller.account is None and not (public and self.anonymous_access and action is Action.READ):
            raise Unauthenticated(f"log in to {_WORDS[action]} {namespace}/{repository}, if it exists")
        allowed = (public and action is Action.READ) or self._has(caller, namespace, repository, action)
        if allowed and not caller.may(namespace, repository, action):
            raise InsufficientScope(f"this token does not allow to {_WORDS[action]} {namespace}/{repository}")
        return allowed

    def _has(self, caller: "Caller", namespace: str, repository: str, action: Action) -> bool:
        if caller.account is None:
            return False
        if action is Action.CREATE:
            return self.accounts.may_create(caller.account, namespace)
        role = self.accounts.role(caller.account, namespace, repository)
        return role is not None and role.word in _ROLES[action]


_ROLES = {
    Action.READ: ("read", "write", "admin"),
    Action.WRITE: ("write", "admin"),
    Action.DELETE: ("write", "admin"),
    Action.ADMIN: ("admin",),
}


@dataclass(frozen=True, slots=True)
class PublicOnly:
    """The answer where nobody has an account: public repositories to everybody, if that is allowed at all."""

    anonymous_access: bool = True

    def __call__(self, namespace: str, repository: str, /, *, public: bool, action: Action = Action.READ) -> bool:
        return public and self.anonymous_access and action is Action.READ


def everything(
    namespace: str,  # noqa: ARG001 the answer is yes
    repository: str,  # noqa: ARG001
    /,
    *,
    public: bool,  # noqa: ARG001
    action: Action = Action.READ,  # noqa: ARG001
) -> bool:
    """Allow all: the command line runs with the operator's own access to database and storage."""
    return True


def check(
    permission: Permission, namespace: str, repository: str, *, public: bool, action: Action = Action.READ
) -> None:
    """Raise Denied unless `permission` allows the action."""
    if permission(namespace, repository, public=public, action=action) is not True:
        raise Denied(f"{namespace}/{repository} does not exist or is not yours to {_WORDS[action]}")


def allows(
    permission: Permission, namespace: str, repository: str, *, public: bool, action: Action = Action.READ
) -> bool:
    """Tell whether `permission` allows the action, also where it would ask for other credentials."""
    try:
        return permission(namespace, repository, public=public, action=action) is True
    except Denied:
        return False


_WORDS = {
    Action.READ: "read",
    Action.WRITE: "write to",
    Action.DELETE: "delete from",
    Action.CREATE: "write to",  # the same as of one that is there
    Action.ADMIN: "administer",
}
