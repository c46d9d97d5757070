"""The composition root: where the configuration comes from, and what importing it costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import app
from app import ConfigurationUnreadable, create_app, read_configuration
from endpoints.settings import InvalidSetting


def test_without_anything_the_configuration_is_empty() -> None:
    assert read_configuration({"PATH": "/bin", "HOME": "/root"}) == {}


def test_a_file_is_read_and_the_environment_stands_above_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("SERVER_HOSTNAME: from.file\nREGISTRY_STATE: readonly\nSUPER_USERS: [admin]\n")
    read = read_configuration({"VERBS_CONFIG": str(file), "SERVER_HOSTNAME": "from.environment", "REGISTRY_STATE": ""})
    assert read["SERVER_HOSTNAME"] == "from.environment"
    assert read["REGISTRY_STATE"] == "readonly"


def test_a_misspelt_variable_of_ours_is_not_passed_over() -> None:
    with pytest.raises(InvalidSetting, match="VERBS_DATADIR is not a setting; did you mean VERBS_DATA_DIR"):
        create_app(read_configuration({"VERBS_DATADIR": "/data"}))


def test_an_empty_file_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# nothing yet\n")
    assert read_configuration({"VERBS_CONFIG": str(file)}) == {}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationUnreadable, match=r"absent\.yaml, which cannot be read: No such file"):
        read_configuration({"VERBS_CONFIG": str(tmp_path / "absent.yaml")})


@pytest.mark.parametrize("content", ["- a\n- list\n", "a text", "1: number\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationUnreadable, match="does not consist of keys and values"):
        read_configuration({"VERBS_CONFIG": str(file)})


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\xfa"])
def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationUnreadable, match="cannot be read") as refused:
        read_configuration({"VERBS_CONFIG": str(file)})
    assert "\n" not in str(refused.value)


def test_every_application_is_its_own(tmp_path: Path) -> None:
    first, second = (
        create_app({"VERBS_DATA_DIR": str(tmp_path / name), "SERVER_HOSTNAME": name}) for name in ("a.host", "b.host")
    )
    assert [each.extensions["registry_verbs"].settings.server_hostname for each in (first, second)] == [
        "a.host",
        "b.host",
    ]


def test_a_server_that_asks_for_app_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERBS_DATA_DIR", str(tmp_path))
    assert app.app.test_client().get("/c1/_internal_ping").data == b"true"


def test_app_has_no_other_surprises() -> None:
    with pytest.raises(AttributeError, match="application"):
        app.application  # noqa: B018 the access is what is tested


def test_importing_it_imports_nothing_heavy() -> None:
    program = "import app, endpoints.commands, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {
        "flask",
        "werkzeug",
        "sqlalchemy",
        "boto3",
        "gunicorn",
        "rich",
        "isal",
        "yaml",
        "util.compression",
    }
