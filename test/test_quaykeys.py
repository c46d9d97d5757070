"""Quay's configuration as it is: every key of it is obeyed, passed over for a reason, or warned of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import create_app, read_configuration
from endpoints import quaykeys
from endpoints.settings import InvalidSetting, Settings

HERE = Path(__file__).parent
KEYS = [line for line in (HERE / "quaykeys.txt").read_text().splitlines() if line and not line.startswith("#")]
COMPLETE = HERE / "quayconfig.yaml"


def warnings(configuration: Mapping[str, Any]) -> list[str]:
    return quaykeys.warnings(configuration, Settings.parse(configuration))


def warned_of(configuration: Mapping[str, Any]) -> set[str]:
    return {line.split()[0] for line in warnings(configuration)}


def complete() -> dict[str, Any]:
    configuration: dict[str, Any] = yaml.safe_load(COMPLETE.read_text())
    return configuration


# --- Every key --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_each_key_of_quay_s_is_obeyed_or_warned_of_or_passed_over_for_a_reason(key: str) -> None:
    places = [key in Settings.KEYS, key in quaykeys.CAUTIONS, quaykeys.passed_over(key) is not None]
    assert places.count(True) == 1, dict(zip(("obeyed", "warned of", "passed over"), places, strict=True))


def test_no_key_is_listed_that_quay_does_not_have() -> None:
    assert set(quaykeys.CAUTIONS) <= set(KEYS)
    assert set(quaykeys.PASSED_OVER) <= set(KEYS)
    assert len(quaykeys.PASSED_OVER) == sum(len(keys.split()) for keys in quaykeys._GROUPS.values())  # none twice


def test_a_login_of_any_name_is_one_of_the_web_s() -> None:
    assert quaykeys.passed_over("ACMEOIDC_LOGIN_CONFIG") is not None
    assert quaykeys.passed_over("ACMEOIDC") is None


# --- A complete configuration -----------------------------------------------------------------------------------------


def test_a_configuration_with_every_key_of_quay_s_starts_and_warns_of_what_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert sorted(complete()) == sorted(KEYS)
    monkeypatch.chdir(tmp_path)  # its database and its storage are relative
    configuration = {**read_configuration({"VERBS_CONFIG": str(COMPLETE)}), "VERBS_REGISTRY": "own"}
    assert create_app(configuration).test_client().get("/c1/").status_code == 200
    expected = {
        "ACTION_LOG_AUDIT_DELETE_FAILURES",
        "ACTION_LOG_AUDIT_LOGIN_FAILURES",
        "ACTION_LOG_AUDIT_PULL_FAILURES",
        "ACTION_LOG_AUDIT_PUSH_FAILURES",
        "ALLOWED_OCI_ARTIFACT_TYPES",
        "FEATURE_FIPS",
        "FEATURE_IMMUTABLE_TAGS",
        "FEATURE_RATE_LIMITS",
    }
    assert warned_of(configuration) == expected
    assert {record.message.split()[0] for record in caplog.records if record.name == "endpoints.startup"} == expected


def test_of_a_quay_s_registry_nothing_is_warned_of_that_is_about_pushes() -> None:
    assert warned_of(complete()) == {
        "ACTION_LOG_AUDIT_LOGIN_FAILURES",
        "ACTION_LOG_AUDIT_PULL_FAILURES",
        "FEATURE_FIPS",
        "FEATURE_RATE_LIMITS",
    }


# --- Warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "harmless", "harmful"),
    [
        ("FEATURE_RATE_LIMITS", [False, "false", "no", 0], [True, "true", "True", 1, ["x"]]),
        ("FEATURE_ADVERTISE_V2", [True, "yes"], [False, "off"]),
        ("FEATURE_PROXY_CACHE", [False], [True]),
        ("LOGS_MODEL", ["database"], ["splunk", "elasticsearch"]),
        ("ACCOUNT_RECOVERY_MODE", [False], [True]),
    ],
)
def test_a_key_is_warned_of_where_it_restricts_something(key: str, harmless: list[Any], harmful: list[Any]) -> None:
    assert [value for value in harmless if warnings({key: value})] == []
    assert [value for value in harmful if not warnings({key: value})] == []
    assert warnings({key: None}) == []


@pytest.mark.parametrize(
    ("key", "harmless", "harmful"),
    [
        ("FEATURE_IMMUTABLE_TAGS", [False], [True]),
        ("DEFAULT_SYSTEM_REJECT_QUOTA_BYTES", [0, "0", False], [1 << 30, "1073741824", "much"]),
        ("FEATURE_GENERAL_OCI_SUPPORT", [True], [False]),
        ("DEFAULT_TAG_EXPIRATION", ["2w"], ["26w"]),
        ("FEATURE_STORAGE_REPLICATION", [False], [True]),
    ],
)
def test_what_is_about_pushes_is_warned_of_in_a_registry_of_our_own(
    key: str, harmless: list[Any], harmful: list[Any]
) -> None:
    assert [value for value in harmless if warnings({key: value})] == []
    assert [value for value in harmful if not warnings({key: value})] == []
    assert [value for value in harmful if warnings({key: value, "VERBS_REGISTRY": "quay"})] == []


def test_a_warning_is_one_line_that_names_the_key_what_it_means_and_what_to_do() -> None:
    for caution in quaykeys.CAUTIONS.values():
        assert caution.warning.startswith(f"{caution.key} is not obeyed: ")
        assert "\n" not in caution.warning
        assert caution.meaning in caution.warning
        assert caution.advice in caution.warning
        assert caution.warning.count(";") >= 1


def test_a_misspelling_of_a_key_that_matters_is_warned_of() -> None:
    assert warnings({"FEATURE_ANONYMOUS_ACESS": False}) == [
        (
            "FEATURE_ANONYMOUS_ACESS is no key of Quay's or ours and is passed over; "
            "did you mean FEATURE_ANONYMOUS_ACCESS?"
        )
    ]
    assert warned_of({"FEATURE_RATE_LIMIT": True}) == {"FEATURE_RATE_LIMIT"}
    assert warnings({"MAX_CONTENT_LENGTH": 5, "EXPLAIN_TEMPLATE_LOADING": False}) == []  # Flask's
    assert quaykeys.unknown({"MAX_CONTENT_LENGTH": 5, "DB_URI": "sqlite://", "TESTING": 1}) == ["MAX_CONTENT_LENGTH"]


def test_no_value_is_in_a_warning() -> None:
    values = dict.fromkeys(quaykeys.CAUTIONS, "hunter2")
    assert len(warnings(values)) == len(quaykeys.CAUTIONS)
    assert "hunter2" not in "".join(warnings(values))


# --- Types ------------------------------------------------------------------------------------------------------------

ODD = [[], {}, "", 0, -1, 1.5, "elephants", ["x"], {"x": [1]}, True]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_no_value_of_a_key_that_is_not_obeyed_stops_anything(value: object) -> None:
    configuration = {key: value for key in KEYS if key not in Settings.KEYS}
    warnings(configuration)
    assert Settings.parse(configuration) == Settings.parse({})


@pytest.mark.parametrize("key", [key for key in KEYS if key in Settings.KEYS])
def test_a_wrong_type_of_a_key_that_is_obeyed_is_an_error_that_names_it(key: str) -> None:
    with pytest.raises(InvalidSetting, match=key):
        Settings.parse({key: {5: 5}})


def test_switches_and_lists_may_be_written_as_texts() -> None:
    settings = Settings.parse(
        {
            "FEATURE_SUPER_USERS": "false",
            "ROBOTS_DISALLOW": "True",
            "ROBOTS_WHITELIST": '["acme+mirror"]',
            "GLOBAL_READONLY_SUPER_USERS": ["auditor"],
            "DB_CONNECTION_ARGS": '{"sslmode": "require"}',
            "DB_READ_REPLICAS": '[{"DB_URI": "postgresql://r/quay"}]',
        }
    )
    assert not settings.superusers_enabled
    assert settings.robots_allowed == frozenset({"acme+mirror"})
    assert settings.authentication.readonly_superusers == {"auditor"}
    assert settings.db_arguments == {"sslmode": "require"}
    assert [replica.uri for replica in settings.replicas] == ["postgresql://r/quay"]


def test_robots_are_let_in_unless_they_are_disallowed() -> None:
    assert Settings.parse({"ROBOTS_WHITELIST": ["acme+mirror"]}).robots_allowed is None
    assert Settings.parse({"ROBOTS_DISALLOW": True}).robots_allowed == frozenset()


def test_a_replica_is_connected_to_as_the_database_unless_it_says_otherwise() -> None:
    settings = Settings.parse(
        {
            "DB_URI": "postgresql://db/quay",
            "DB_CONNECTION_ARGS": {"sslmode": "require"},
            "DB_READ_REPLICAS": [
                {"DB_URI": "postgresql://one/quay"},
                {"DB_URI": "postgresql://two/quay", "DB_CONNECTION_ARGS": {"sslmode": "disable"}},
            ],
        }
    )
    assert [replica.arguments for replica in settings.replicas] == [
        {"sslmode": "require"},
        {"sslmode": "disable"},
    ]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("postgresql://replica/hunter2", "DB_READ_REPLICAS"),
        ([{"uri": "hunter2"}], r"DB_READ_REPLICAS\[0\]"),
        ([{"DB_URI": "postgresql://one/q"}, {"DB_URI": "hunter2"}], r"DB_READ_REPLICAS\[1\].DB_URI"),
        (
            [{"DB_URI": "postgresql://one/q", "DB_CONNECTION_ARGS": ["hunter2"]}],
            r"DB_READ_REPLICAS\[0\].DB_CONNECTION_ARGS",
        ),
    ],
)
def test_a_replica_that_cannot_be_one_is_named_without_its_password(value: object, named: str) -> None:
    with pytest.raises(InvalidSetting, match=named) as refused:
        Settings.parse({"DB_READ_REPLICAS": value})
    assert "hunter2" not in str(refused.value)
