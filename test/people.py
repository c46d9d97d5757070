"""Accounts for tests, as rows: a registry that somebody else wrote, and hashes that cost next to nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import bcrypt
from sqlalchemy import insert, select

from data.database import Engine, writing
from data.owntables import LoginRow, changing
from data.secretbox import SecretBox
from data.tables import (
    AppSpecificAuthToken,
    Repository,
    RepositoryKind,
    RepositoryPermission,
    RobotAccountToken,
    Role,
    Team,
    TeamMember,
    TeamRole,
    User,
    Visibility,
)

PASSWORD = "correct-horse"
ROBOT_TOKEN = "ROBOTTOKEN" * 6 + "9999"
SECRET = "a-database-secret-key"


def quick_hash(password: str) -> str:
    """Return a hash as Quay keeps them, of far fewer rounds."""
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()


_HASH = quick_hash(PASSWORD)


@dataclass(frozen=True)
class People:
    """Writes rows into Quay's tables, and returns their ids."""

    engine: Engine

    def add(self, table: Any, **values: Any) -> int:
        with writing(self.engine) as connection:
            return int(connection.execute(insert(table).values(**values).returning(table.id)).scalar_one())

    def find(self, table: Any, **values: Any) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(select(table.id).filter_by(**values)).scalar_one())

    def user(self, name: str, password: str | None = PASSWORD, **more: Any) -> int:
        kept = None if password is None else _HASH if password == PASSWORD else quick_hash(password)
        return self.add(User, username=name, password_hash=kept, **more)

    def organization(self, name: str, teams: Mapping[str, tuple[str, ...]] | None = None, **more: Any) -> int:
        """Make an organization with `teams`: under "name" or "name:role" who is in each."""
        number = self.add(User, username=name, organization=True, **more)
        for team, members in (teams or {}).items():
            short, _, role = team.partition(":")
            role_id = self.find(TeamRole, name=role or "member")
            team_id = self.add(Team, name=short, organization_id=number, role_id=role_id)
            for member in members:
                self.add(TeamMember, team_id=team_id, user_id=self.find(User, username=member))
        return number

    def robot(self, name: str, *, secret: str = SECRET, token: str = ROBOT_TOKEN, **more: Any) -> int:
        number = self.add(User, username=name, robot=True, **more)
        kept = SecretBox(secret).encrypt(token)
        self.add(RobotAccountToken, robot_account_id=number, token=kept, fully_migrated=True)
        return number

    def app_token(self, user: str, code: str, *, secret: str = SECRET, **more: Any) -> int:
        kept = SecretBox(secret).encrypt(code[60:])
        user_id = self.find(User, username=user)
        return self.add(
            AppSpecificAuthToken, user_id=user_id, title="cli", token_name=code[:60], token_secret=kept, **more
        )

    def repository(self, name: str, granted: Mapping[str, str] | None = None, *, public: bool = False) -> int:
        """Make `namespace/repository`; `granted` has roles by user, by robot, or by `team:name`."""
        namespace, _, repository = name.partition("/")
        owner = self.find(User, username=namespace)
        number = self.add(
            Repository,
            namespace_user_id=owner,
            name=repository,
            visibility_id=self.find(Visibility, name="public" if public else "private"),
            kind_id=self.find(RepositoryKind, name="image"),
        )
        for who, role in (granted or {}).items():
            role_id = self.find(Role, name=role)
            if who.startswith("team:"):
                team_id = self.find(Team, name=who.removeprefix("team:"), organization_id=owner)
                self.add(RepositoryPermission, team_id=team_id, repository_id=number, role_id=role_id)
            else:
                user_id = self.find(User, username=who)
                self.add(RepositoryPermission, user_id=user_id, repository_id=number, role_id=role_id)
        return number


def failed_before(engine: Engine, name: str, failures: int = 8) -> None:
    """Let `name` have failed so often, long ago: the next login is looked at, and one more failure is a long wait."""
    values = {"username": name, "failures": failures, "last_ms": 0}
    changing(engine, lambda connection: connection.execute(insert(LoginRow).values(**values)).rowcount)
