"""What `make run` prepares: an admin whose password is told once, and nothing where somebody is already."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.accounts import Role
from test.demo import ADMIN, first_admin
from test.images import Image, Layer
from test.layers import file
from test.place import Place

SMALL = Image([Layer([file(b"etc/hostname", b"here\n")])])


def test_an_admin_is_made_once_and_may_do_everything(tmp_path: Path) -> None:
    services = Place(tmp_path).services()
    password = first_admin(services.administration)
    assert password is not None
    account = services.accounts.authenticate(ADMIN, password)
    assert account.superuser
    assert services.accounts.role(account, "acme", "app") == Role.ADMIN
    assert first_admin(services.administration) is None
    assert [each.name for each in services.administration.users()] == [ADMIN]


def test_where_there_are_users_none_is_made(tmp_path: Path) -> None:
    services = Place(tmp_path).services()
    services.administration.create_user("alice", "correct-horse")
    assert first_admin(services.administration) is None
    assert [each.name for each in services.administration.users()] == ["alice"]


def run(place: Place, **more: str) -> str:
    environment = {**os.environ, "VERBS_DATA_DIR": place.configuration["VERBS_DATA_DIR"], **more}
    command = [sys.executable, "-m", "test.demo", "--url", "http://127.0.0.1:5000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    return done.stdout


def test_the_password_is_told_once_with_a_line_to_copy(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", SMALL)
    said = run(place)
    login = "podman login --tls-verify=false --username admin"
    found = re.search(rf"echo (\S+) \| {login} --password-stdin 127.0.0.1:5000\n", said)
    assert found is not None
    assert place.services().accounts.authenticate(ADMIN, found[1]).superuser
    again = run(place)
    assert found[1] not in again
    assert f"{login} 127.0.0.1:5000" in again


@pytest.mark.parametrize("more", [{"REGISTRY_STATE": "readonly"}, {"VERBS_REGISTRY": "quay"}])
def test_a_registry_that_is_only_read_gets_no_admin(tmp_path: Path, more: dict[str, str]) -> None:
    place = Place(tmp_path)
    place.push("acme/app:1.0", SMALL)
    said = run(place, **more)
    assert "password" not in said
    assert "login" not in said
    assert place.services().administration.users() == []
