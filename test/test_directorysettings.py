"""The settings of accounts that live elsewhere, as Quay writes them."""

from typing import Any

import pytest

from data.directories.directory import JwtSettings, LdapSettings
from endpoints.directorysettings import READERS, AuthenticationSettings
from endpoints.settings import InvalidSetting, Settings

LDAP = {
    "AUTHENTICATION_TYPE": "LDAP",
    "LDAP_URI": "ldaps://ldap.example.com",
    "LDAP_ADMIN_DN": "cn=admin,dc=example,dc=com",
    "LDAP_ADMIN_PASSWD": "the-admin's-own",
    "LDAP_BASE_DN": ["dc=example", "dc=com"],
    "LDAP_USER_RDN": ["ou=people"],
}
JWT = {
    "AUTHENTICATION_TYPE": "JWT",
    "JWT_VERIFY_ENDPOINT": "https://people.example.com/verify",
    "JWT_AUTH_ISSUER": "people",
    "VERBS_CONFIG_DIR": "/conf/stack",
}


def read(**keys: Any) -> AuthenticationSettings:
    return Settings.parse(keys).authentication


def ldap(**keys: Any) -> LdapSettings:
    found = read(**{**LDAP, **keys}).ldap
    assert found is not None
    return found


def test_accounts_live_here_unless_something_else_is_said() -> None:
    assert read() == AuthenticationSettings() == read(AUTHENTICATION_TYPE="Database", LDAP_URI="ldap://x")


def test_an_ldap_directory_of_quay_s() -> None:
    assert ldap() == LdapSettings(
        uris=("ldaps://ldap.example.com",),
        base_dn="dc=example,dc=com",
        search_bases=("ou=people,dc=example,dc=com",),
        admin_dn="cn=admin,dc=example,dc=com",
        admin_password="the-admin's-own",
    )
    more = ldap(
        LDAP_URI="ldap://a ldap://b:1389",
        LDAP_SECONDARY_USER_RDNS=["ou=guests", "ou=staff,ou=more"],
        LDAP_UID_ATTR="sAMAccountName",
        LDAP_EMAIL_ATTR="userPrincipalName",
        LDAP_MEMBEROF_ATTR="isMemberOf",
        LDAP_USER_FILTER="(a=b)",
        LDAP_SUPERUSER_FILTER="(a=c)",
        LDAP_GLOBAL_READONLY_SUPERUSER_FILTER="(a=d)",
        LDAP_RESTRICTED_USER_FILTER="(a=e)",
        LDAP_ALLOW_INSECURE_FALLBACK=True,
        LDAP_TIMEOUT=3,
        LDAP_NETWORK_TIMEOUT=4.5,
        LDAP_FOLLOW_REFERRALS=0,
        LDAP_CONNECTION_POOLING=False,
        LDAP_POOL_SIZE=3,
        LDAP_POOL_MAX_WAIT=1.5,
        LDAP_POOL_CONNECTION_LIFETIME=60,
        VERBS_LDAP_STARTTLS="yes",
        VERBS_CONFIG_DIR="/conf/stack",
        FEATURE_MAILING=True,
    )
    assert more == LdapSettings(
        uris=("ldap://a", "ldap://b:1389"),
        base_dn="dc=example,dc=com",
        search_bases=(
            "ou=people,dc=example,dc=com",
            "ou=guests,dc=example,dc=com",
            "ou=staff,ou=more,dc=example,dc=com",
        ),
        admin_dn="cn=admin,dc=example,dc=com",
        admin_password="the-admin's-own",
        uid_attribute="sAMAccountName",
        email_attribute="userPrincipalName",
        member_of_attribute="isMemberOf",
        user_filter="(a=b)",
        superuser_filter="(a=c)",
        readonly_superuser_filter="(a=d)",
        restricted_filter="(a=e)",
        requires_email=True,
        start_tls=True,
        insecure_fallback=True,
        follow_referrals=False,
        timeout=3.0,
        network_timeout=4.5,
        pooling=False,
        pool_size=3,
        pool_wait=1.5,
        pool_lifetime=60.0,
        trusted=("/conf/stack/ldap.crt", "/conf/stack/extra_ca_certs"),
    )


def test_the_environment_has_texts() -> None:
    texts = {
        "LDAP_BASE_DN": "dc=example,dc=com",
        "LDAP_USER_RDN": '["ou=people"]',
        "LDAP_SECONDARY_USER_RDNS": '["ou=x"]',
    }
    assert ldap(**texts).search_bases == ("ou=people,dc=example,dc=com", "ou=x,dc=example,dc=com")
    assert ldap(LDAP_USER_RDN=[]).search_bases == ("dc=example,dc=com",)
    assert ldap(LDAP_USER_FILTER="").user_filter is None


def test_an_empty_text_is_nothing() -> None:
    empty = dict.fromkeys((key for key in READERS if key.startswith(("LDAP_", "JWT_"))), "")
    assert read(**empty) == AuthenticationSettings()
    assert ldap(LDAP_URI="", LDAP_ADMIN_DN="", LDAP_ADMIN_PASSWD="").uris == ("ldap://localhost",)
    with pytest.raises(InvalidSetting, match="LDAP_BASE_DN"):
        ldap(LDAP_BASE_DN="")


def test_an_e_mail_address_is_required_where_quay_would() -> None:
    assert not ldap().requires_email
    assert ldap(DB_URI="postgresql://quay@db/quay").requires_email
    assert not ldap(DB_URI="postgresql://quay@db/quay", FEATURE_MAILING=False).requires_email


def test_a_jwt_service_of_quay_s() -> None:
    assert read(**JWT).jwt == JwtSettings(
        "https://people.example.com/verify",
        "people",
        "/conf/stack/jwt-authn.cert",
        trusted=("/conf/stack/extra_ca_certs",),
    )
    asked = read(**JWT, JWT_AUTH_MAX_FRESH_S=60).jwt
    assert asked is not None
    assert asked.fresh_seconds == 60


@pytest.mark.parametrize("key", ["LDAP_BASE_DN", "LDAP_ADMIN_PASSWD"])
def test_what_ldap_needs_is_asked_for_by_name(key: str) -> None:
    with pytest.raises(InvalidSetting, match=key):
        read(**{name: value for name, value in LDAP.items() if name != key})


@pytest.mark.parametrize("key", ["JWT_VERIFY_ENDPOINT", "JWT_AUTH_ISSUER"])
def test_what_jwt_needs_is_asked_for_by_name(key: str) -> None:
    with pytest.raises(InvalidSetting, match=key):
        read(**{name: value for name, value in JWT.items() if name != key})


def test_keystone_is_refused_and_told_what_there_is_instead() -> None:
    with pytest.raises(InvalidSetting, match=r"Keystone.*AppToken"):
        read(AUTHENTICATION_TYPE="Keystone")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AUTHENTICATION_TYPE", "ldap"),
        ("LDAP_URI", "ldap.example.com"),
        ("LDAP_URI", "http://ldap.example.com"),
        ("LDAP_URI", "ldap://"),
        ("LDAP_URI", "ldap://x:99999"),
        ("LDAP_URI", "ldap://admin:hunter2@x"),
        ("LDAP_URI", ["ldap://x"]),
        ("LDAP_BASE_DN", []),
        ("LDAP_BASE_DN", "example"),
        ("LDAP_BASE_DN", [1]),
        ("LDAP_USER_RDN", {"ou": "people"}),
        ("LDAP_ADMIN_PASSWD", ["hunter2"]),
        ("LDAP_TIMEOUT", 0),
        ("LDAP_TIMEOUT", -1),
        ("LDAP_TIMEOUT", "nan"),
        ("LDAP_TIMEOUT", "inf"),
        ("LDAP_TIMEOUT", True),
        ("LDAP_POOL_SIZE", 0),
        ("LDAP_FOLLOW_REFERRALS", "perhaps"),
        ("JWT_VERIFY_ENDPOINT", "people.example.com"),
        ("JWT_VERIFY_ENDPOINT", "https://admin:hunter2@people.example.com"),
        ("JWT_VERIFY_ENDPOINT", "https://people.example.com/\r\nX: y"),
        ("JWT_AUTH_MAX_FRESH_S", "5m"),
        ("TEAM_RESYNC_STALE_TIME", 30),
        ("TEAM_RESYNC_STALE_TIME", "0m"),
        ("TEAM_RESYNC_STALE_TIME", "30 minutes"),
        ("RESTRICTED_USERS_WHITELIST", "alice"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=key) as caught:
        read(**{**LDAP, key: value})
    assert "hunter2" not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    assert "the-admin's-own" not in repr(Settings.parse(LDAP))


def test_what_a_directory_said_is_remembered_for_a_short_time() -> None:
    assert read(**LDAP).rights_seconds == 5.0
    assert read(**LDAP, LDAP_CACHE_TTL=60).rights_seconds == 60.0
    assert read(**LDAP, FEATURE_LDAP_CACHING=False, LDAP_CACHE_TTL=60).rights_seconds == 0.0


def test_who_may_be_made_a_user() -> None:
    assert read().creates_users
    assert not read(FEATURE_USER_CREATION=False).creates_users
    assert not read(FEATURE_INVITE_ONLY_USER_CREATION=True).creates_users
    domains = {"BLACKLISTED_EMAIL_DOMAINS": ["Spam.example"]}
    assert read(**domains).refused_domains == frozenset()
    assert read(**domains, FEATURE_BLACKLISTED_EMAILS=True).refused_domains == {"spam.example"}


def test_who_is_restricted_and_who_reads_everything() -> None:
    found = read(
        FEATURE_RESTRICTED_USERS=True, RESTRICTED_USERS_WHITELIST=["alice"], GLOBAL_READONLY_SUPER_USERS=["auditor"]
    )
    assert found.restricted_users
    assert found.whitelist == frozenset({"alice"})
    assert found.readonly_superusers == {"auditor"}
    assert read(RESTRICTED_USERS_WHITELIST=[]).whitelist is None


def test_how_often_teams_are_brought_in_line() -> None:
    found = read(FEATURE_TEAM_SYNCING=True, TEAM_RESYNC_STALE_TIME="2h", TEAM_SYNC_WORKER_FREQUENCY=10)
    assert (found.team_syncing, found.resync_seconds, found.sync_seconds) == (True, 7200, 10)
