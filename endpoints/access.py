"""Who may read a repository: the question a host answers, and our own answer where there is no host.

The law: the question is asked before anything else is looked at, and a repository that does not exist is asked for like
a private one. So who may not read learns neither that a repository exists nor that it does not.
"""

from dataclasses import dataclass
from typing import Protocol

from util.problem import Problem


class Denied(Problem):
    """Who asks may not read the repository, if there is one."""

    code = "DENIED"


class Unauthenticated(Denied):
    """Nobody has said who asks; with credentials it might be allowed."""

    code = "UNAUTHORIZED"


class Permission(Protocol):
    """A host's permission check. It runs within the request, so it may look at the host's own session or user."""

    def __call__(self, namespace: str, repository: str, /, *, public: bool) -> bool:
        """Tell whether who asks may read `namespace`/`repository`; `public` is false also where there is none.

        Only True allows. To ask for credentials rather than to refuse, raise Unauthenticated.
        """


@dataclass(frozen=True, slots=True)
class PublicOnly:
    """Our own answer as long as there are no accounts: public repositories to everybody, if that is allowed at all."""

    anonymous_access: bool = True

    def __call__(self, namespace: str, repository: str, /, *, public: bool) -> bool:
        return public and self.anonymous_access


def everything(namespace: str, repository: str, /, *, public: bool) -> bool:  # noqa: ARG001 the answer is yes
    """Allow all: the command line runs with the operator's own access to database and storage."""
    return True


def check(permission: Permission, namespace: str, repository: str, *, public: bool) -> None:
    """Raise Denied unless `permission` allows to read the repository."""
    if permission(namespace, repository, public=public) is not True:
        raise Denied(f"{namespace}/{repository} does not exist or is not yours to read")
