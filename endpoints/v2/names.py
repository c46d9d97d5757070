"""What the name in a URL means: a repository that who asks may read, or write to.

The law: permission is asked before anything is looked at. A name with one part means a repository of LIBRARY_NAMESPACE.
A repository that is pushed to is made if it is not there and who pushes may make it.
"""

from dataclasses import dataclass, replace

from flask import current_app, request

from data.discovery import Reader
from data.registry import RepositoryInfo, RepositoryNotFound
from endpoints import audit
from endpoints.access import AccountPermission, Action, InsufficientScope, Unauthenticated, allows
from endpoints.caller import become, caller
from endpoints.image import repository_for
from endpoints.services import Services
from endpoints.tokens import CATALOG
from endpoints.verbs import EXTENSION
from util.names import InvalidName, check_namespace, check_repository
from util.problem import Problem

_SCOPE = "registry_verbs.scope"
_SCOPES = {
    Action.READ: "pull",
    Action.WRITE: "pull,push",
    Action.CREATE: "pull,push",
    Action.DELETE: "delete",
    Action.ADMIN: "*",
}


class PushesRefused(Problem):
    """A registry that is not ours to write to, or read-only."""

    code = "UNSUPPORTED"


class NoLibrary(InvalidName):
    """A name with one part, where no namespace is set for such."""


class NestedName(InvalidName):
    """A new repository with slashes in its name, where none may be made."""


@dataclass(frozen=True, slots=True)
class Named:
    """A repository by its namespace and its name within that."""

    namespace: str
    repository: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.repository}"


def named(name: str) -> Named:
    """Return what `name` means: NAMESPACE/REPOSITORY, or a repository of the library. Raises InvalidName."""
    namespace, slash, repository = name.partition("/")
    if not slash:
        library = services().settings.library_namespace
        if library is None:
            raise NoLibrary(f"{name!r} is no name for a repository: NAMESPACE/REPOSITORY")
        namespace, repository = library, name
    check_namespace(namespace)
    check_repository(repository)
    return Named(namespace, repository)


def meant(name: str) -> Named | None:
    """Return what `named` does, None where `name` is no name."""
    try:
        return named(name)
    except InvalidName:
        return None


def readable(name: str) -> tuple[Named, RepositoryInfo]:
    """Return the repository `name` for reading.

    Raises InvalidName; Denied and what a permission check raises; RepositoryNotFound, NamespaceDisabled,
    NotAnImageRepository; RegistryUnavailable.
    """
    repository = named(name)
    want(f"repository:{name}:{_SCOPES[Action.READ]}")
    # Who may make it is told that it is not there: clients look for blobs before they push.
    return repository, _found(repository, Action.READ, Action.READ, Action.CREATE)


def writable(
    name: str, *, creates: bool = False, action: Action = Action.WRITE, out_of: str | None = None
) -> tuple[Named, RepositoryInfo]:
    """Return the repository `name` for a change. With `creates` one that is not there is made.

    One that is made is private unless the settings say otherwise, and who asked administers it. `out_of` is another
    repository that the change would read: a token should be for it, too. Raises as `readable` does, PushesRefused, and
    NestedName.
    """
    repository = named(name)
    read = "" if out_of is None or meant(out_of) is None else f" repository:{out_of}:{_SCOPES[Action.READ]}"
    want(f"repository:{name}:{_SCOPES[action]}{read}")
    try:
        info = _found(repository, action, *((Action.CREATE,) if creates else ()))
    except RepositoryNotFound:
        check_pushes()
        if not creates:
            raise
        _make(repository)
        info = _found(repository, action)  # another may have made it just then, and it is theirs
    check_pushes()
    if info.frozen:
        raise PushesRefused(f"{repository} is read-only or a mirror: it can be pulled from, and not be changed")
    return repository, info


def catalog() -> None:
    """Have the rest of the request be one for a list of repositories: each is seen by who may read it.

    Raises Unauthenticated where nobody may come without an account, and InsufficientScope for a token that is not for
    the catalog.
    """
    want("registry:catalog:*")
    asking = caller()
    if asking.account is None and not services().settings.anonymous_access:
        raise Unauthenticated("log in to list repositories")
    if asking.granted is not None and not asking.granted.get(CATALOG):
        raise InsufficientScope("this token is not for the list of repositories")
    become(replace(asking, granted=None))


def may(repository: Named, action: Action, *, public: bool = False) -> bool:
    """Tell whether who asks may do that; `public` is whether the repository is, false where there is none."""
    return allows(services().permission, repository.namespace, repository.repository, public=public, action=action)


def reader() -> Reader:
    """Return who asks as lists know them; where a host decides, as one who reads all: of each, `may` is asked then."""
    ours = services()
    if not isinstance(ours.permission, AccountPermission):
        return Reader(everything=True)
    account = caller().account
    if account is None or (account.scopes is not None and account.scopes.role is None):
        return Reader()
    everything = (account.superuser and ours.settings.superusers_full_access) or account.reads_everything
    return Reader(account.id, robot=account.robot, everything=everything)


def check_pushes() -> None:
    """Raise PushesRefused where nothing may be changed."""
    settings = services().settings
    if not settings.own_registry:
        raise PushesRefused("this registry is only read here: it is kept by another service (VERBS_REGISTRY)")
    if settings.readonly:
        raise PushesRefused("this registry is read-only (REGISTRY_STATE)")
    if not settings.pushes:
        raise PushesRefused("pushes to this registry are turned off (DISABLE_PUSHES)")


def want(scope: str) -> None:
    """Note which scope a token needs for this request; the challenge of a refusal names it."""
    request.environ[_SCOPE] = scope


def wanted() -> str | None:
    """Return the scope that a token needs for this request, None where any will do."""
    scope: str | None = request.environ.get(_SCOPE)
    return scope


def _found(repository: Named, action: Action, *absent: Action) -> RepositoryInfo:
    ours = services()
    audit.about(repository.namespace, repository.repository)
    return repository_for(
        ours.registry, ours.permission, repository.namespace, repository.repository, action=action, absent=absent
    )


def _make(repository: Named) -> None:
    ours = services()
    if "/" in repository.repository and not ours.settings.nested_repositories:
        raise NestedName(f"{repository} has slashes in its name, which FEATURE_EXTENDED_REPOSITORY_NAMES rules out")
    account = caller().account
    ours.administration.create_repository(
        repository.namespace,
        repository.repository,
        public=not ours.settings.private_on_push,
        creator=None if account is None else account.id,
    )


def services() -> Services:
    """Return the services of the application that answers."""
    found: Services = current_app.extensions[EXTENSION]
    return found
