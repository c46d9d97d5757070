"""The settings: what each key means, what it defaults to, and how a wrong value is refused."""

import pytest

from endpoints.settings import InvalidSetting, Location, Settings, SigningKey


def test_no_configuration_is_a_working_one() -> None:
    settings = Settings.parse({})
    assert settings.db_uri == "sqlite:///var/registry.db"
    assert settings.own_registry
    assert settings.storage_config == {"default": Location("LocalStorage", {"storage_path": "var/storage"})}
    assert settings.storage_preference == ("default",)
    assert not settings.readonly
    assert settings.anonymous_access


def test_the_data_dir_carries_the_database_and_the_storage() -> None:
    settings = Settings.parse({"VERBS_DATA_DIR": "/srv/verbs"})
    assert settings.db_uri == "sqlite:////srv/verbs/registry.db"
    assert settings.storage_config["default"].parameters == {"storage_path": "/srv/verbs/storage"}


def test_our_own_tables_lie_beside_the_registry_s_unless_they_have_a_database_of_their_own() -> None:
    assert Settings.parse({}).own_db_uri == Settings().own_db_uri == Settings().db_uri
    assert Settings.parse({"DB_URI": "postgresql://quay@db/quay"}).own_db_uri == "postgresql://quay@db/quay"
    settings = Settings.parse({"DB_URI": "postgresql://quay@db/quay", "VERBS_DB_URI": "mysql+pymysql://v@db/verbs"})
    assert (settings.db_uri, settings.own_db_uri) == ("postgresql://quay@db/quay", "mysql+pymysql://v@db/verbs")
    assert not settings.own_registry


def test_a_configuration_of_quay_is_taken_as_it_is() -> None:
    settings = Settings.parse(
        {
            "DB_URI": "postgresql://quay:secret@db/quay",
            "DISTRIBUTED_STORAGE_CONFIG": {
                "us": ["S3Storage", {"s3_bucket": "quay", "storage_path": "/datastorage/registry"}],
                "eu": ["RadosGWStorage", {"hostname": "rgw"}],
            },
            "DISTRIBUTED_STORAGE_PREFERENCE": ["eu"],
            "SERVER_HOSTNAME": "quay.example.com:8443",
            "PREFERRED_URL_SCHEME": "https",
            "REGISTRY_STATE": "readonly",
            "FEATURE_ANONYMOUS_ACCESS": False,
            "FEATURE_PROXY_STORAGE": True,
            "FEATURE_EXTENDED_REPOSITORY_NAMES": False,
            "SUPER_USERS": ["admin"],
        }
    )
    assert settings.db_uri == "postgresql://quay:secret@db/quay"
    assert not settings.own_registry
    assert settings.storage_config["us"].driver == "S3Storage"
    assert settings.storage_preference == ("eu", "us")
    assert settings.server_hostname == "quay.example.com:8443"
    assert settings.url_scheme == "https"
    assert settings.readonly
    assert not settings.anonymous_access
    assert settings.proxy_storage
    assert not settings.nested_repositories


def test_the_registry_is_ours_unless_a_database_is_named() -> None:
    uri = "postgresql://quay@db/quay"
    assert not Settings.parse({"DB_URI": uri}).own_registry
    assert not Settings.parse({"DB_URI": uri}).superusers_full_access
    ours = Settings.parse({"DB_URI": uri, "VERBS_REGISTRY": "own"})
    assert ours.own_registry
    assert ours.superusers_full_access
    assert not Settings.parse({"VERBS_REGISTRY": "quay"}).own_registry
    assert not Settings.parse({"FEATURE_SUPERUSERS_FULL_ACCESS": False}).superusers_full_access


def test_a_library_may_be_turned_off() -> None:
    assert Settings.parse({}).library_namespace == "library"
    assert Settings.parse({"LIBRARY_NAMESPACE": "base"}).library_namespace == "base"
    assert Settings.parse({"LIBRARY_NAMESPACE": "base", "FEATURE_LIBRARY_SUPPORT": "no"}).library_namespace is None


def test_a_secret_is_never_shown() -> None:
    assert Settings.parse({"SECRET_KEY": 12, "DATABASE_SECRET_KEY": "k"}).secret_key == "12"
    with pytest.raises(InvalidSetting, match="SECRET_KEY is '…'"):
        Settings.parse({"SECRET_KEY": ["hush"]})


def test_superusers_are_names() -> None:
    assert Settings.parse({"SUPER_USERS": '["admin"]'}).superusers == {"admin"}
    with pytest.raises(InvalidSetting, match="a list of user names"):
        Settings.parse({"SUPER_USERS": "admin"})


def test_every_value_may_be_the_text_that_the_environment_has() -> None:
    settings = Settings.parse(
        {
            "DISTRIBUTED_STORAGE_CONFIG": '{"a": ["LocalStorage", {"storage_path": "/a"}]}',
            "DISTRIBUTED_STORAGE_PREFERENCE": '["a"]',
            "FEATURE_ANONYMOUS_ACCESS": "no",
            "VERBS_MAX_ENTRIES": "1000",
            "VERBS_MAX_SIZE": "20G",
            "VERBS_KEEP_DAYS": "0",
            "VERBS_QUOTA": "2T",
            "VERBS_GC_SECONDS": "60",
        }
    )
    assert settings.storage_config == {"a": Location("LocalStorage", {"storage_path": "/a"})}
    assert not settings.anonymous_access
    assert settings.limits.max_entries == 1000
    assert settings.limits.max_size == 20 << 30
    assert (settings.keep_days, settings.quota, settings.gc_seconds) == (0, 2 << 40, 60)


def test_a_null_is_a_key_that_is_not_given() -> None:
    assert Settings.parse({"SERVER_HOSTNAME": None}) == Settings.parse({})


def test_the_default_locations_are_preferred_where_nothing_else_is() -> None:
    storages = {name: ["LocalStorage", {"storage_path": f"/{name}"}] for name in ("a", "b")}
    settings = Settings.parse({"DISTRIBUTED_STORAGE_CONFIG": storages, "DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS": ["b"]})
    assert settings.storage_preference == ("b", "a")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("DB_URI", "quay", "postgresql://"),
        ("DISTRIBUTED_STORAGE_CONFIG", "{", "LocalStorage"),
        ("DISTRIBUTED_STORAGE_CONFIG", {}, "LocalStorage"),
        ("DISTRIBUTED_STORAGE_CONFIG", {"a": "LocalStorage"}, "LocalStorage"),
        ("DISTRIBUTED_STORAGE_CONFIG", {"a": ["LocalStorage"]}, "LocalStorage"),
        ("DISTRIBUTED_STORAGE_PREFERENCE", ["nowhere"], "default"),
        ("DISTRIBUTED_STORAGE_PREFERENCE", 5, "list"),
        ("SERVER_HOSTNAME", "https://quay.example.com", "no scheme"),
        ("SERVER_HOSTNAME", "a host", "host name"),
        ("PREFERRED_URL_SCHEME", "ftp", "http or https"),
        ("REGISTRY_STATE", "read-only", "normal or readonly"),
        ("FEATURE_ANONYMOUS_ACCESS", "perhaps", "true or false"),
        ("VERBS_DATA_DIR", "", "not empty"),
        ("VERBS_MAX_ENTRIES", "-1", "above zero"),
        ("VERBS_MAX_ENTRIES", True, "above zero"),
        ("VERBS_MAX_SIZE", "20 elephants", "20G"),
        ("VERBS_MAX_SIZE", 0, "above zero"),
        ("VERBS_KEEP_DAYS", -1, "0 turns it off"),
        ("VERBS_KEEP_DAYS", False, "0 turns it off"),
        ("VERBS_GC_SECONDS", "1h", "0 turns it off"),
        ("VERBS_QUOTA", 0, "above zero"),
        ("VERBS_PRIME", "acme/*", "a list of rules"),
        ("VERBS_PRIME", {"repositories": "acme/*"}, "a list of rules"),
        ("VERBS_BROKER_URL", "kafka://broker", "redis://"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(key: str, value: object, allowed: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        Settings.parse({key: value})
    assert key in str(refused.value)
    assert allowed in str(refused.value)


@pytest.mark.parametrize(
    "configuration",
    [
        {"DB_URI": "hunter2"},
        {"VERBS_BROKER_URL": "hunter2"},
        {"DISTRIBUTED_STORAGE_CONFIG": {"a": ["S3Storage", "hunter2"]}},
        {"DISTRIBUTED_STORAGE_CONFIG": '{"a": ["S3Storage", {"s3_secret_key": "hunter2"}]'},
        {"DB_CONNECTION_ARGS": "password=hunter2"},
    ],
)
def test_a_refused_value_that_may_hold_a_secret_is_not_shown(configuration: dict[str, object]) -> None:
    with pytest.raises(InvalidSetting) as refused:
        Settings.parse(configuration)
    assert "hunter2" not in str(refused.value)


def test_a_misspelt_key_of_ours_is_an_error_that_names_the_right_one() -> None:
    with pytest.raises(InvalidSetting, match="VERBS_MAX_ENTRIS is not a setting; did you mean VERBS_MAX_ENTRIES"):
        Settings.parse({"VERBS_MAX_ENTRIS": 5})


def test_a_key_of_ours_that_resembles_none_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidSetting, match="there are: VERBS_DATA_DIR"):
        Settings.parse({"VERBS_ZZZ": 5})


# --- Signing ----------------------------------------------------------------------------------------------------------

SIGNED = {
    "SIGNING_ENGINE": "gpg2",
    "GPG2_PRIVATE_KEY_NAME": "EB32227A",
    "GPG2_PRIVATE_KEY_FILENAME": "signing-private.gpg",
    "GPG2_PUBLIC_KEY_FILENAME": "signing-public.gpg",
}


def test_nothing_signs_unless_an_engine_is_named() -> None:
    assert Settings.parse({}).signing_key is None
    assert Settings.parse({**SIGNED, "SIGNING_ENGINE": None}).signing_key is None
    expected = SigningKey("EB32227A", "signing-private.gpg", "signing-public.gpg")
    assert Settings.parse(SIGNED).signing_key == expected


@pytest.mark.parametrize("key", [key for key in SIGNED if key != "SIGNING_ENGINE"])
def test_an_engine_without_its_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{key} is not set, and SIGNING_ENGINE gpg2 needs it"):
        Settings.parse({name: value for name, value in SIGNED.items() if name != key})


def test_an_engine_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="SIGNING_ENGINE is 'pgp'; allowed: gpg2"):
        Settings.parse({**SIGNED, "SIGNING_ENGINE": "pgp"})
