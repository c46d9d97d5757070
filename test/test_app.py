"""The composition root: where the configuration comes from, and what importing it costs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_files_of_keys_lie_beside_the_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("GPG2_PRIVATE_KEY_FILENAME: private.gpg\n")
    environ = {"GPG2_PUBLIC_KEY_FILENAME": "/etc/keys/public.gpg"}
    assert read_configuration({"VERBS_CONFIG": str(file), **environ}) == {
        "GPG2_PRIVATE_KEY_FILENAME": f"{tmp_path}/private.gpg",
        "GPG2_PUBLIC_KEY_FILENAME": "/etc/keys/public.gpg",
        "VERBS_CONFIG_DIR": str(tmp_path),
    }
    assert read_configuration({"GPG2_PRIVATE_KEY_FILENAME": "private.gpg"}) == {
        "GPG2_PRIVATE_KEY_FILENAME": "private.gpg"
    }


def test_files_of_storages_lie_beside_the_configuration_file(tmp_path: Path) -> None:
    def storages(beside: str) -> dict[str, Any]:
        front = {"cloudfront_privatekey_filename": f"{beside}front.pem", "s3_bucket": "front.pem"}
        flares = [{"cloudflare_privatekey_filename": file} for file in ("/keys/flare.pem", f"{beside}keys/flare.pem")]
        providers = {"X": ["CloudFlareStorage", flares[0]], "Y": ["CloudFlareStorage", flares[1]]}
        return {
            "one": ["CloudFrontedS3Storage", front],
            "two": ["MultiCDNStorage", {"providers": providers}],
            "odd": {"cloudfront_privatekey_filename": 3},
        }

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"DISTRIBUTED_STORAGE_CONFIG": storages("")}))
    placed = {"DISTRIBUTED_STORAGE_CONFIG": storages(f"{tmp_path}/")}
    assert read_configuration({"VERBS_CONFIG": str(file)}) == {**placed, "VERBS_CONFIG_DIR": str(tmp_path)}
    environ = {"DISTRIBUTED_STORAGE_CONFIG": json.dumps(storages(""))}
    assert read_configuration({"VERBS_CONFIG": str(file), **environ}) == {**placed, "VERBS_CONFIG_DIR": str(tmp_path)}
    assert read_configuration(environ) == {"DISTRIBUTED_STORAGE_CONFIG": storages("")}
    assert read_configuration({"DISTRIBUTED_STORAGE_CONFIG": "{"}) == {"DISTRIBUTED_STORAGE_CONFIG": "{"}


def test_a_misspelt_variable_of_ours_is_not_passed_over() -> None:
    with pytest.raises(InvalidSetting, match="VERBS_DATADIR is not a setting; did you mean VERBS_DATA_DIR"):
        create_app(read_configuration({"VERBS_DATADIR": "/data"}))


def test_an_empty_file_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# nothing yet\n")
    assert read_configuration({"VERBS_CONFIG": str(file)}) == {"VERBS_CONFIG_DIR": str(tmp_path)}
    elsewhere = {"VERBS_CONFIG_DIR": "/conf/stack"}
    assert read_configuration({"VERBS_CONFIG": str(file), **elsewhere}) == elsewhere


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


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/c1", "/c1/"),
        ("/v2//acme/app/manifests/1.0?a=b", "/v2/acme/app/manifests/1.0?a=b"),
        ("/c1/aci/registry/acme/app/1.0/aci/linux/amd64", "/c1/aci/registry/acme/app/1.0/aci/linux/amd64/"),
    ],
)
def test_no_redirect_leads_from_a_proxy_s_tls_into_the_clear(tmp_path: Path, path: str, there: str) -> None:
    client = create_app({"VERBS_DATA_DIR": str(tmp_path), "PREFERRED_URL_SCHEME": "https"}).test_client()
    answer = client.get(path, base_url="http://registry.example.com")
    assert (answer.status_code, answer.headers["Location"]) == (308, there)


def test_the_lines_to_copy_have_the_setting_s_scheme(tmp_path: Path) -> None:
    client = create_app({"VERBS_DATA_DIR": str(tmp_path), "PREFERRED_URL_SCHEME": "https"}).test_client()
    for verb in client.get("/c1/", base_url="http://registry.example.com").get_json()["verbs"]:
        assert verb["url"].startswith("https://registry.example.com/c1/")


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
