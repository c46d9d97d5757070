"""The commands of accounts: user, org, team, robot, repo, permission. Whoever can write the database may do all of it.

The law: as in commands.py, to which these belong. A password is never an argument, which others on the machine could
read; a robot's token is the only word on stdout, once.
"""

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from endpoints.commandline import Commands, ReadConfiguration, echo, examples, services_of
from util.problem import Problem

if TYPE_CHECKING:
    from data.administration import Administration

_REPOSITORY = "NAMESPACE/REPOSITORY"
_password = click.option("--password-stdin", is_flag=True, help="Read the password from stdin, and do not ask for it.")
_with_repositories = click.option("--with-repositories", is_flag=True, help="Delete the repositories there, too.")


class RepositoryExists(Problem):
    """A repository that is there already, where one should be made."""

    code = "NAME_TAKEN"


class StaysSuperuser(Problem):
    """A user whom the settings make a superuser, where nothing else can take it from them."""

    code = "SUPERUSER_BY_SETTINGS"


def _administration(read: ReadConfiguration) -> "Administration":
    return services_of(read).administration


def _repository(_: click.Context, __: click.Parameter, value: str) -> tuple[str, str]:
    namespace, slash, repository = value.partition("/")
    if not (namespace and slash and repository):
        raise click.BadParameter(f"{value!r} is not {_REPOSITORY}")
    return namespace, repository


def _each(names: Iterable[str], work: Callable[[str], None]) -> None:
    """Do `work` for each name, tell which could not be done, and leave with 1 if one could not."""
    failed = False
    for name in names:
        try:
            work(name)
        except Problem as problem:
            failed = True
            echo(f"registry-verbs: {problem}", err=True)
    if failed:
        sys.exit(1)


def _read_password(*, stdin: bool) -> str:
    if stdin:
        try:
            return sys.stdin.buffer.read().decode().rstrip("\r\n")  # as clients send it, whatever the locale
        except UnicodeDecodeError:
            raise click.UsageError("the password is no text") from None
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for a password on; say --password-stdin")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


# --- Users ------------------------------------------------------------------------------------------------------------


@click.group(cls=Commands)
def user() -> None:
    """Make, list, promote, disable and delete users."""


@user.command(
    "create",
    epilog=examples(
        "registry-verbs user create alice",
        "registry-verbs user create admin --superuser --password-stdin < password",
    ),
)
@click.argument("name")
@_password
@click.option("--email", metavar="ADDRESS", help="May be used to log in instead of the name.")
@click.option("--superuser", is_flag=True, help="May do everything, everywhere.")
@click.pass_obj
def user_create(
    read: ReadConfiguration, *, name: str, password_stdin: bool, email: str | None, superuser: bool
) -> None:
    """Make a user, who has a namespace of the same name. A password has 8 characters or more and no white space."""
    administration = _administration(read)
    administration.create_user(name, _read_password(stdin=password_stdin), email=email, superuser=superuser)


@user.command("password", epilog=examples("registry-verbs user password alice --password-stdin < password"))
@click.argument("name")
@_password
@click.pass_obj
def user_password(read: ReadConfiguration, *, name: str, password_stdin: bool) -> None:
    """Give a user another password. Whoever had to wait for failed logins need not any more."""
    administration = _administration(read)
    administration.set_password(name, _read_password(stdin=password_stdin))


@user.command(
    "superuser",
    epilog=examples("registry-verbs user superuser alice", "registry-verbs user superuser alice --revoke"),
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--revoke", is_flag=True, help="Let them do no more than others.")
@click.pass_obj
def user_superuser(read: ReadConfiguration, *, names: tuple[str, ...], revoke: bool) -> None:
    """Let users do everything, everywhere."""
    services = services_of(read)

    def change(name: str) -> None:
        services.administration.set_superuser(name, superuser=not revoke)
        if revoke and name in services.settings.superusers:
            raise StaysSuperuser(f"{name} stays a superuser, because SUPER_USERS names them")

    _each(names, change)


@user.command("ls", epilog=examples("registry-verbs user ls"))
@click.pass_obj
def user_ls(read: ReadConfiguration) -> None:
    """List the users: name, whether one is disabled or a superuser, e-mail address."""
    services = services_of(read)
    for each in services.administration.users():
        state = "enabled" if each.enabled else "disabled"
        rank = "superuser" if each.superuser or each.name in services.settings.superusers else ""
        echo(f"{each.name:24}  {state:8}  {rank:9}  {each.email or ''}".rstrip())


@user.command("rm", epilog=examples("registry-verbs user rm alice", "registry-verbs user rm bob --with-repositories"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_with_repositories
@click.pass_obj
def user_rm(read: ReadConfiguration, *, names: tuple[str, ...], with_repositories: bool) -> None:
    """Delete users, and their robots with them."""
    administration = _administration(read)
    _each(names, lambda name: administration.delete_user(name, with_repositories=with_repositories))


@user.command("disable", epilog=examples("registry-verbs user disable alice", "registry-verbs user disable acme+ci"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def user_disable(read: ReadConfiguration, names: tuple[str, ...]) -> None:
    """Disable users, organizations or robots: nobody logs in as one, and nothing in such a namespace can be had."""
    administration = _administration(read)
    _each(names, lambda name: administration.set_enabled(name, enabled=False))


@user.command("enable", epilog=examples("registry-verbs user enable alice"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def user_enable(read: ReadConfiguration, names: tuple[str, ...]) -> None:
    """Enable users, organizations or robots again."""
    administration = _administration(read)
    _each(names, lambda name: administration.set_enabled(name, enabled=True))


# --- Organizations ----------------------------------------------------------------------------------------------------


@click.group(cls=Commands)
def org() -> None:
    """Make, list and delete organizations."""


@org.command("create", epilog=examples("registry-verbs org create acme --owner alice"))
@click.argument("name")
@click.option("--owner", metavar="USER", help="A user who is its admin: the first in its team `owners`.")
@click.pass_obj
def org_create(read: ReadConfiguration, *, name: str, owner: str | None) -> None:
    """Make an organization: a namespace that belongs to teams."""
    _administration(read).create_organization(name, owner=owner)


@org.command("ls", epilog=examples("registry-verbs org ls"))
@click.pass_obj
def org_ls(read: ReadConfiguration) -> None:
    """List the organizations, and whether one is disabled."""
    for each in _administration(read).organizations():
        echo(f"{each.name:24}  {'enabled' if each.enabled else 'disabled'}")


@org.command("rm", epilog=examples("registry-verbs org rm acme --with-repositories"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_with_repositories
@click.pass_obj
def org_rm(read: ReadConfiguration, *, names: tuple[str, ...], with_repositories: bool) -> None:
    """Delete organizations, and their teams and robots with them."""
    administration = _administration(read)
    _each(names, lambda name: administration.delete_organization(name, with_repositories=with_repositories))


@click.group(cls=Commands)
def team() -> None:
    """Make, list and delete an organization's teams, and say who is in them."""


@team.command("create", epilog=examples("registry-verbs team create acme developers --role creator"))
@click.argument("organization")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["member", "creator", "admin"]),
    default="member",
    show_default=True,
    help="What it may do in all of the organization: what it is granted, make repositories too, or everything.",
)
@click.pass_obj
def team_create(read: ReadConfiguration, *, organization: str, name: str, role: str) -> None:
    """Make a team."""
    from data.teams import Rank

    _administration(read).create_team(organization, name, rank=Rank.parse(role))


@team.command("rm", epilog=examples("registry-verbs team rm acme developers"))
@click.argument("organization")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def team_rm(read: ReadConfiguration, *, organization: str, names: tuple[str, ...]) -> None:
    """Delete teams."""
    administration = _administration(read)
    _each(names, lambda name: administration.delete_team(organization, name))


@team.command("add", epilog=examples("registry-verbs team add acme developers alice bob acme+ci"))
@click.argument("organization")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@click.pass_obj
def team_add(read: ReadConfiguration, *, organization: str, name: str, members: tuple[str, ...]) -> None:
    """Put users, or robots of the organization, into a team."""
    administration = _administration(read)
    _each(members, lambda member: administration.add_member(organization, name, member))


@team.command("remove", epilog=examples("registry-verbs team remove acme developers bob"))
@click.argument("organization")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar="MEMBER...")
@click.pass_obj
def team_remove(read: ReadConfiguration, *, organization: str, name: str, members: tuple[str, ...]) -> None:
    """Take users or robots out of a team."""
    administration = _administration(read)
    _each(members, lambda member: administration.remove_member(organization, name, member))


@team.command("ls", epilog=examples("registry-verbs team ls acme"))
@click.argument("organization")
@click.pass_obj
def team_ls(read: ReadConfiguration, organization: str) -> None:
    """List an organization's teams: name, role, who is in them, and which group the users are those of."""
    for each in _administration(read).teams(organization):
        group = "" if each.group is None else f"  (group {each.group})"
        echo(f"{each.name:24}  {each.rank:7}  {' '.join(each.members)}{group}".rstrip())


@team.command(
    "sync",
    epilog=examples(
        "registry-verbs team sync acme developers --group cn=developers,ou=groups",
        "registry-verbs team sync acme developers --off",
    ),
)
@click.argument("organization")
@click.argument("name")
@click.option("--group", metavar="DN", help="The group in LDAP, with or without LDAP_BASE_DN at its end.")
@click.option("--off", is_flag=True, help="Leave the team to itself again, with who is in it.")
@click.pass_obj
def team_sync(read: ReadConfiguration, *, organization: str, name: str, group: str | None, off: bool) -> None:
    """Have the users of a team be the members of a group in LDAP, at once and from now on. Robots stay in it."""
    if off is (group is not None):
        raise click.UsageError("say --group DN or --off")
    services = services_of(read)
    if group is None:
        services.administration.unsync_team(organization, name)
        return
    from endpoints.teamsyncing import sync_team

    done = sync_team(services, organization, name, group)
    echo(f"{organization}/{name} got {done.added} users and lost {done.removed}", err=True)


# --- Robots -----------------------------------------------------------------------------------------------------------


@click.group(cls=Commands)
def robot() -> None:
    """Make, list and delete robots: accounts for programs, of a user or an organization."""


@robot.command("create", epilog=examples("registry-verbs robot create acme+ci > token"))
@click.argument("name", metavar="OWNER+NAME")
@click.pass_obj
def robot_create(read: ReadConfiguration, *, name: str) -> None:
    """Make a robot and print its token, which is its password. It is shown this once.

    A robot may do nothing until it is granted something, or is in a team.
    """
    echo(_administration(read).create_robot(name))


@robot.command("renew", epilog=examples("registry-verbs robot renew acme+ci > token"))
@click.argument("name", metavar="OWNER+NAME")
@click.pass_obj
def robot_renew(read: ReadConfiguration, *, name: str) -> None:
    """Give a robot another token and print it, this once; the one before is good for nothing from then on."""
    echo(_administration(read).renew_robot(name))


@robot.command(
    "federate",
    epilog=examples(
        "registry-verbs robot federate acme+ci --issuer https://token.actions.example.com --subject repo:acme/app"
        " --audience registry.example.com",
        "registry-verbs robot federate acme+ci --off",
    ),
)
@click.argument("name", metavar="OWNER+NAME")
@click.option("--issuer", help="The https URL of an OpenID provider whose tokens the robot trusts.")
@click.option("--subject", help="Whom a token has to be about: its claim `sub`.")
@click.option("--audience", "audiences", multiple=True, help="Whom a token has to be for; may be repeated.")
@click.option("--off", is_flag=True, help="Trust nobody any more.")
@click.pass_obj
def robot_federate(
    read: ReadConfiguration,
    *,
    name: str,
    issuer: str | None,
    subject: str | None,
    audiences: tuple[str, ...],
    off: bool,
) -> None:
    """Let a robot log in with tokens of an OpenID provider, in the place of whom it trusted before.

    The robot's name and such a token are good at /oauth2/federation/robot/token for a password that lasts an hour.
    """
    from data.robotfederation import Trusted

    if off == bool(issuer or subject or audiences) or (not off and not (issuer and subject)):
        raise click.UsageError("say --issuer and --subject, or --off")
    trusted = [] if off else [Trusted.checked(issuer or "", subject or "", audiences)]
    _administration(read).federate_robot(name, trusted)


@robot.command("ls", epilog=examples("registry-verbs robot ls", "registry-verbs robot ls acme"))
@click.argument("owner", required=False)
@click.pass_obj
def robot_ls(read: ReadConfiguration, owner: str | None) -> None:
    """List the robots, or those of an owner, and whether one is disabled."""
    for each in _administration(read).robots(owner):
        echo(f"{each.name:24}  {'enabled' if each.enabled else 'disabled'}")


@robot.command("rm", epilog=examples("registry-verbs robot rm acme+ci"))
@click.argument("names", nargs=-1, required=True, metavar="OWNER+NAME...")
@click.pass_obj
def robot_rm(read: ReadConfiguration, names: tuple[str, ...]) -> None:
    """Delete robots; their tokens are good for nothing from then on."""
    _each(names, _administration(read).delete_robot)


# --- Repositories -----------------------------------------------------------------------------------------------------


@click.group(cls=Commands)
def repo() -> None:
    """Make, list, hide, show and delete repositories."""


@repo.command("create", epilog=examples("registry-verbs repo create acme/app --public"))
@click.argument("name", metavar=_REPOSITORY, callback=_repository)
@click.option("--public/--private", "public", default=False, help="Whether everybody may read it.  [default: private]")
@click.pass_obj
def repo_create(read: ReadConfiguration, *, name: tuple[str, str], public: bool) -> None:
    """Make a repository with nothing in it."""
    from data.registry import RepositoryNotFound

    services = services_of(read)
    try:
        services.registry.repository(*name)
    except RepositoryNotFound:
        services.administration.create_repository(*name, public=public)
    else:
        raise RepositoryExists(f"there is a repository {'/'.join(name)} already")


@repo.command("ls", epilog=examples("registry-verbs repo ls", "registry-verbs repo ls acme"))
@click.argument("namespace", required=False)
@click.pass_obj
def repo_ls(read: ReadConfiguration, namespace: str | None) -> None:
    """List the repositories, or those of a namespace: public or private, name."""
    for each in _administration(read).repositories(namespace):
        echo(f"{'public' if each.public else 'private':7}  {each.namespace}/{each.name}")


@repo.command("rm", epilog=examples("registry-verbs repo rm acme/app"))
@click.argument("names", nargs=-1, required=True, metavar=f"{_REPOSITORY}...")
@click.pass_obj
def repo_rm(read: ReadConfiguration, names: tuple[str, ...]) -> None:
    """Delete repositories with all that is in them. `registry-verbs gc` frees what only they had."""
    administration = _administration(read)

    def delete(name: str) -> None:
        namespace, _, repository = name.partition("/")
        administration.delete_repository(namespace, repository)

    _each(names, delete)


@repo.command("visibility", epilog=examples("registry-verbs repo visibility acme/app public"))
@click.argument("name", metavar=_REPOSITORY, callback=_repository)
@click.argument("visibility", type=click.Choice(["public", "private"]))
@click.pass_obj
def repo_visibility(read: ReadConfiguration, *, name: tuple[str, str], visibility: str) -> None:
    """Let everybody read a repository, or only who is granted it."""
    _administration(read).set_visibility(*name, public=visibility == "public")


@click.group(cls=Commands)
def permission() -> None:
    """Say who may do what with a repository."""


@permission.command(
    "grant",
    epilog=examples(
        "registry-verbs permission grant acme/app alice write",
        "registry-verbs permission grant acme/app acme+ci read",
        "registry-verbs permission grant acme/app team:developers admin",
    ),
)
@click.argument("name", metavar=_REPOSITORY, callback=_repository)
@click.argument("who")
@click.argument("role", metavar="read|write|admin", type=click.Choice(["read", "write", "admin"]))
@click.pass_obj
def permission_grant(read: ReadConfiguration, *, name: tuple[str, str], who: str, role: str) -> None:
    """Let WHO pull (read), push too (write), or administer a repository (admin), instead of what they might before.

    WHO is a user, a robot (OWNER+NAME), or a team of the organization (team:NAME).
    """
    from data.accounts import Role

    _administration(read).grant(*name, who, Role.parse(role))


@permission.command("revoke", epilog=examples("registry-verbs permission revoke acme/app team:developers"))
@click.argument("name", metavar=_REPOSITORY, callback=_repository)
@click.argument("who")
@click.pass_obj
def permission_revoke(read: ReadConfiguration, *, name: tuple[str, str], who: str) -> None:
    """Take from WHO what they were granted in a repository."""
    _administration(read).revoke(*name, who)


@permission.command("ls", epilog=examples("registry-verbs permission ls acme/app"))
@click.argument("name", metavar=_REPOSITORY, callback=_repository)
@click.pass_obj
def permission_ls(read: ReadConfiguration, name: tuple[str, str]) -> None:
    """List what was granted in a repository: role, who. Owners and admins of all of the namespace need no grant."""
    for each in _administration(read).permissions(*name):
        echo(f"{each.role.word:5}  {each.who}")


COMMANDS = (user, org, team, robot, repo, permission)
