"""Every key of Quay's configuration that is not a setting here: what it is for, and whether to warn of it.

Invariants:
- A key of Quay's is in exactly one of three places: `Settings.KEYS` (obeyed), `PASSED_OVER` (it has no meaning for a
  service that hands out images and has no web pages), or `CAUTIONS` (it restricts or promises something that does not
  hold here, so whoever set it has to know).
- Values are looked at and never checked: a wrong type in a key that is not obeyed stops nothing. A switch whose value
  cannot be understood counts as one that was turned on to restrict something.
- No value is shown, as it may be a secret.

quay/quay, util/config/schema.py, config.py and config-tool/pkg/lib/fieldgroups.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from endpoints.settings import Settings
from endpoints.settingvalues import InvalidSetting, flag

_ALIKE = 0.88  # how alike a word and a key are that is taken for its misspelling


@dataclass(frozen=True, slots=True)
class Caution:
    """A key that is not obeyed and must not be passed over in silence where `matters` says so."""

    key: str
    matters: Callable[[object, Settings], bool]
    meaning: str
    advice: str

    @property
    def warning(self) -> str:
        """One line: the key, what it would mean, and what to do."""
        return f"{self.key} is not obeyed: {self.meaning}; {self.advice}"


def passed_over(key: str) -> str | None:
    """Return why a key of Quay's has no meaning here, None where it has some, or is not Quay's."""
    if key in PASSED_OVER:
        return PASSED_OVER[key]
    # quay/quay, oauth/loginmanager.py: every key that ends so sets up a login on the web.
    return _LOGINS if key.endswith("_LOGIN_CONFIG") else None


def is_known(key: str) -> bool:
    """Tell whether `key` is one of ours or of Quay's."""
    return key in Settings.KEYS or key in CAUTIONS or passed_over(key) is not None


def warnings(configuration: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return a line for each key that is set and that it would be unsafe to pass over in silence.

    Those are keys that restrict or promise something and are not obeyed here, and words that look like a misspelling of
    a key that is obeyed or that would be warned of.
    """
    lines = [
        caution.warning
        for key, caution in CAUTIONS.items()
        if configuration.get(key) is not None and caution.matters(configuration[key], settings)
    ]
    return [*lines, *_misspellings(configuration)]


def unknown(configuration: Mapping[str, Any]) -> list[str]:
    """Return the keys that are neither ours nor Quay's, in order."""
    return sorted(key for key in configuration if not is_known(key))


def _misspellings(configuration: Mapping[str, Any]) -> Iterator[str]:
    matter = [*Settings.KEYS, *CAUTIONS]
    for key in unknown(configuration):
        near = difflib.get_close_matches(key, matter, n=1, cutoff=_ALIKE)
        if near:
            yield f"{key} is no key of Quay's or ours and is passed over; did you mean {near[0]}?"


# --- When a caution matters -------------------------------------------------------------------------------------------


def _on(value: object, _: Settings) -> bool:
    try:
        return flag("", value)
    except InvalidSetting:
        return True


def _off(value: object, _: Settings) -> bool:
    try:
        return not flag("", value)
    except InvalidSetting:
        return True


def _in_ours(matters: Callable[[object, Settings], bool]) -> Callable[[object, Settings], bool]:
    """Return what matters only where pushes come here: a registry of our own."""
    return lambda value, settings: settings.own_registry and matters(value, settings)


def _given(_: object, __: Settings) -> bool:
    return True


def _unless(*usual: object) -> Callable[[object, Settings], bool]:
    return lambda value, _: value not in usual


def _positive(value: object, _: Settings) -> bool:
    try:
        return value is not False and float(str(value)) > 0
    except ValueError:
        return True


_AUDIT = "what goes on here is in the audit log of this service (VERBS_AUDIT_LOG) and not in Quay's; collect that, too"

CAUTIONS: Mapping[str, Caution] = {
    caution.key: caution
    for caution in (
        # Who may log in.
        Caution(
            "ACCOUNT_RECOVERY_MODE",
            _on,
            "Quay answers no pull meanwhile, and this service does",
            "stop this service for as long as Quay is in that mode",
        ),
        Caution(
            "FEATURE_FIPS",
            _on,
            "which hash functions may be used is not restricted here",
            "run this service on a system whose OpenSSL is in FIPS mode",
        ),
        # Which images there are.
        Caution(
            "FEATURE_PROXY_CACHE",
            _on,
            "Quay asks the upstream registry of a proxy organization about each tag, and here its tags are what Quay "
            "cached last; a layer that Quay never fetched is a 502",
            "pull such a tag from Quay before you ask for it here",
        ),
        Caution(
            "FEATURE_ADVERTISE_V2",
            _off,
            "Quay hides /v2/, and this service answers there",
            "keep clients from /v2/ of this service in the proxy before it, if they must not pull",
        ),
        # How much somebody may do.
        Caution(
            "FEATURE_RATE_LIMITS",
            _on,
            "nothing here limits how often a client may ask",
            "limit requests in the proxy before this service",
        ),
        Caution(
            "FEATURE_QUOTA_MANAGEMENT",
            _in_ours(_on),
            "a push is never refused for the size of its namespace here",
            "watch the storage itself",
        ),
        Caution(
            "DEFAULT_SYSTEM_REJECT_QUOTA_BYTES",
            _in_ours(_positive),
            "a push is never refused for the size of its namespace here",
            "watch the storage itself",
        ),
        Caution(
            "FEATURE_IMMUTABLE_TAGS",
            _in_ours(_on),
            "any tag can be moved and deleted here",
            "pull what must not change by its digest",
        ),
        Caution(
            "FEATURE_GENERAL_OCI_SUPPORT",
            _in_ours(_off),
            "OCI images and artifacts of every type may be pushed here",
            "grant the role write only to whom you trust with that",
        ),
        Caution(
            "FEATURE_HELM_OCI_SUPPORT",
            _in_ours(_off),
            "Helm charts may be pushed here",
            "grant the role write only to whom you trust with that",
        ),
        Caution(
            "ALLOWED_OCI_ARTIFACT_TYPES",
            _in_ours(_given),
            "artifacts of every type may be pushed here",
            "grant the role write only to whom you trust with that",
        ),
        # What is kept.
        Caution(
            "DEFAULT_TAG_EXPIRATION",
            _in_ours(_unless("2w")),
            "what a deleted tag meant is kept for two weeks here",
            "change removed_tag_expiration_s of the namespaces in the database, or leave out the key",
        ),
        Caution(
            "FEATURE_STORAGE_REPLICATION",
            _in_ours(_on),
            "what is pushed here is stored in the preferred location alone",
            "replicate the storage by its own means",
        ),
        # What is told of it.
        Caution("FEATURE_EXTENDED_ACTION_LOGGING", _on, "pulls and logins here are not in Quay's action log", _AUDIT),
        Caution("ACTION_LOG_AUDIT_LOGIN_FAILURES", _on, "failed logins here are not in Quay's action log", _AUDIT),
        Caution("ACTION_LOG_AUDIT_PULL_FAILURES", _on, "failed downloads here are not in Quay's action log", _AUDIT),
        Caution(
            "ACTION_LOG_AUDIT_PUSH_FAILURES", _in_ours(_on), "failed pushes here are not in Quay's action log", _AUDIT
        ),
        Caution(
            "ACTION_LOG_AUDIT_DELETE_FAILURES",
            _in_ours(_on),
            "failed deletions here are not in Quay's action log",
            _AUDIT,
        ),
        Caution("LOGS_MODEL", _unless("database"), "downloads here are not told to Quay's log service", _AUDIT),
    )
}

# --- What has no meaning here -----------------------------------------------------------------------------------------

_LOGINS = "logins on Quay's web pages; this service has none"

_GROUPS: Mapping[str, str] = {
    "Quay's web pages; this service has none": """
        AVATAR_KIND BRANDING BROWSER_API_CALLS_XHR_ONLY CONTACT_INFO CORS_ORIGIN DEFAULT_UI DISABLE_ANGULAR_UI
        DOCUMENTATION_ROOT ENTERPRISE_LOGO_URL FEATURE_PARTIAL_USER_AUTOCOMPLETE FEATURE_UI_DELAY_AFTER_WRITE
        FEATURE_UI_MODELCARD FEATURE_UI_V2 FOOTER_LINKS FORCE_NONSECURE_SESSION_COOKIE FRESH_LOGIN_TIMEOUT
        FEATURE_PERMANENT_SESSIONS GOOGLE_ANALYTICS_KEY GOOGLE_TAGMANAGER_KEY MARKETO_MUNCHKIN_ID MIXPANEL_KEY
        PAGE_TOKEN_KEY PUBLIC_NAMESPACES REGISTRY_TITLE REGISTRY_TITLE_SHORT SEARCH_MAX_RESULT_PAGE_COUNT
        SEARCH_RESULTS_PER_PAGE SEND_FILE_MAX_AGE_DEFAULT SESSION_COOKIE_HTTPONLY SESSION_COOKIE_NAME
        SESSION_COOKIE_SAMESITE SESSION_COOKIE_SECURE SESSION_TIMEOUT STATIC_SITE_BUCKET UI_DELAY_AFTER_WRITE_SECONDS
        UI_MODELCARD_ANNOTATION UI_MODELCARD_ARTIFACT_TYPE UI_MODELCARD_LAYER_ANNOTATION UI_V2_FEEDBACK_FORM USE_CDN""",
    _LOGINS: """
        BOOTSTRAP_TOKEN_EXPIRATION BOOTSTRAP_TOKEN_OWNER BOOTSTRAP_TOKEN_PATH BOOTSTRAP_TOKEN_SCOPE
        DIRECT_OAUTH_CLIENTID_WHITELIST EXPORT_COMPLIANCE_ENDPOINT FEATURE_ASSIGN_OAUTH_TOKEN FEATURE_DIRECT_LOGIN
        FEATURE_EXPORT_COMPLIANCE FEATURE_GITHUB_LOGIN FEATURE_GOOGLE_LOGIN FEATURE_PROGRAMMATIC_BOOTSTRAP
        FEATURE_RECAPTCHA GITHUB_LOGIN_CONFIG GOOGLE_LOGIN_CONFIG LOCAL_OAUTH_HANDLER
        OAUTH_APPLICATION_MAXIMUM_TOKEN_COUNT OAUTH_TOKEN_LAST_ACCESSED_UPDATE_THRESHOLD_S PROGRAMMATIC_TOKEN_K8S_KEY
        PROGRAMMATIC_TOKEN_K8S_NAMESPACE PROGRAMMATIC_TOKEN_K8S_SECRET PROGRAMMATIC_TOKEN_PATH RECAPTCHA_SECRET_KEY
        RECAPTCHA_SITE_KEY RECAPTCHA_WHITELISTED_USERS""",
    "how users, organizations and teams are made in Quay; here an administrator makes them": """
        APP_SPECIFIC_TOKEN_EXPIRATION CREATE_NAMESPACE_ON_PUSH EXPIRED_APP_SPECIFIC_TOKEN_GC
        FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP FEATURE_ORG_SHARED_EMAIL FEATURE_REQUIRE_TEAM_INVITE
        FEATURE_SUPERUSERS_ORG_CREATION_ONLY FEATURE_USERNAME_CONFIRMATION FEATURE_USER_INITIALIZE
        FEATURE_USER_METADATA FEATURE_USER_RENAME USER_RECOVERY_TOKEN_LIFETIME""",
    "e-mail and notifications, which Quay sends": """
        FEATURE_IMAGE_EXPIRY_TRIGGER MAIL_DEFAULT_SENDER MAIL_FAIL_SILENTLY MAIL_PASSWORD MAIL_PORT MAIL_SERVER
        MAIL_USERNAME MAIL_USE_AUTH MAIL_USE_TLS NOTIFICATION_MIN_SEVERITY_ON_NEW_INDEX NOTIFICATION_QUEUE_NAME
        NOTIFICATION_SEND_TIMEOUT NOTIFICATION_TASK_RUN_MINIMUM_INTERVAL_MINUTES WEBHOOK_HOSTNAME_BLACKLIST""",
    "builds, which Quay does": """
        BILLED_NAMESPACE_MAXIMUM_BUILD_COUNT BITBUCKET_TRIGGER_CONFIG BUILDER_DB_HOST_OVERRIDE
        BUILDLOGS_MODULE_AND_CLASS BUILDLOGS_OPTIONS BUILDLOGS_REDIS BUILDMAN_HOSTNAME BUILD_MANAGER
        DEFAULT_NAMESPACE_MAXIMUM_BUILD_COUNT DOCKERFILE_BUILD_QUEUE_NAME FEATURE_BITBUCKET_BUILD
        FEATURE_BUILD_SUPPORT FEATURE_GITHUB_BUILD FEATURE_GITLAB_BUILD FEATURE_READER_BUILD_LOGS
        GITHUB_TRIGGER_CONFIG GITLAB_TRIGGER_CONFIG LOG_ARCHIVE_LOCATION LOG_ARCHIVE_PATH
        SUCCESSIVE_TRIGGER_FAILURE_DISABLE_THRESHOLD SUCCESSIVE_TRIGGER_INTERNAL_ERROR_DISABLE_THRESHOLD
        THREAT_NAMESPACE_MAXIMUM_BUILD_COUNT USERFILES_LOCATION USERFILES_PATH""",
    "security scans, which Quay has done": """
        FEATURE_SECURITY_NOTIFICATIONS FEATURE_SECURITY_SCANNER FEATURE_SECURITY_SCANNER_NOTIFY_ON_NEW_INDEX
        FEATURE_SECURITY_SCANNER_V2 SECSCAN_V4_NOTIFICATION_QUEUE_NAME SECURITY_SCANNER_ENDPOINT
        SECURITY_SCANNER_INDEXING_INTERVAL SECURITY_SCANNER_MAX_SCAN_RETRIES SECURITY_SCANNER_V2_BATCH_SIZE
        SECURITY_SCANNER_V2_INDEXING_INTERVAL SECURITY_SCANNER_V4_BATCH_SIZE SECURITY_SCANNER_V4_ENDPOINT
        SECURITY_SCANNER_V4_INDEXING SECURITY_SCANNER_V4_INDEX_MAX_LAYER_SIZE SECURITY_SCANNER_V4_LOCK
        SECURITY_SCANNER_V4_MANIFEST_CLEANUP SECURITY_SCANNER_V4_NAMESPACE_WHITELIST SECURITY_SCANNER_V4_PSK
        SECURITY_SCANNER_V4_RECENT_MANIFEST_BATCH_LOCK SECURITY_SCANNER_V4_RECENT_MANIFEST_BATCH_SIZE
        SECURITY_SCANNER_V4_REINDEX_THRESHOLD""",
    "mirrors and caches of other registries, which Quay fills": """
        FEATURE_ORG_MIRROR FEATURE_PROXY_CACHE_BLOB_DOWNLOAD FEATURE_REPO_MIRROR ORG_MIRROR_INTERVAL
        ORG_MIRROR_MAX_DISCOVERY_DURATION PROXY_CACHE_BLOB_QUEUE_NAME REPO_MIRROR_INTERVAL
        REPO_MIRROR_MAX_MANIFEST_ENTRIES REPO_MIRROR_MAX_MANIFEST_LIST_SIZE REPO_MIRROR_ROLLBACK
        REPO_MIRROR_SERVER_HOSTNAME REPO_MIRROR_TAG_ROLLBACK_PAGE_SIZE REPO_MIRROR_TLS_VERIFY
        REPO_MIRROR_WORKER_REPLICAS SSRF_ALLOWED_HOSTS""",
    "Quay's action log, in which Quay writes what goes on there": """
        ACTION_LOG_ARCHIVE_LOCATION ACTION_LOG_ARCHIVE_PATH ACTION_LOG_AUDIT_LOGINS ACTION_LOG_MAX_PAGE
        ACTION_LOG_ROTATION_FREQUENCY ACTION_LOG_ROTATION_THRESHOLD ALLOW_PULLS_WITHOUT_STRICT_LOGGING
        ALLOW_WITHOUT_STRICT_LOGGING DISABLED_FOR_AUDIT_LOGS DISABLED_FOR_PULL_LOGS
        EXPORT_ACTION_LOGS_MAXIMUM_QUERY_TIME_SECONDS EXPORT_ACTION_LOGS_QUEUE_NAME EXPORT_ACTION_LOGS_SECONDS
        EXPORT_ACTION_LOGS_STORAGE_PATH EXPORT_ACTION_LOGS_WORKER_POLL_PERIOD FEATURE_ACTION_LOG_ROTATION
        FEATURE_AGGREGATED_LOG_COUNT_RETRIEVAL FEATURE_DISABLE_PULL_LOGS_FOR_FREE_NAMESPACES FEATURE_LOG_EXPORT
        FEATURE_USER_LOG_ACCESS LOGS_MODEL_CONFIG MINIMUM_LOGS_AGE_FOR_ARCHIVE SERVICE_LOG_ACCOUNT_ID""",
    "what Quay counts and notes of its own pulls and users": """
        FEATURE_IMAGE_PULL_STATS FEATURE_REPOSITORY_ACTION_COUNTER FEATURE_USER_EVENTS FEATURE_USER_LAST_ACCESSED
        LAST_ACCESSED_UPDATE_THRESHOLD_S PULL_METRICS_REDIS PULL_METRICS_WORKER_COUNT REDIS_CONNECTION_TIMEOUT
        REDIS_FLUSH_INTERVAL_SECONDS REDIS_FLUSH_WORKER_BATCH_SIZE REDIS_FLUSH_WORKER_SCAN_COUNT USER_EVENTS_REDIS""",
    "how Quay's own processes are run and watched": """
        ANALYTICS_TYPE API_VERSION APPLICATION_ROOT CLOUDWATCH_AWS_ACCESS_KEY CLOUDWATCH_AWS_SECRET_KEY
        CLOUDWATCH_NAMESPACE DATA_MODEL_CACHE_CONFIG DB_CONNECTION_POOLING DB_TRANSACTION_FACTORY DEBUG
        DISTRIBUTED_STORAGE_VALIDATE_ENDTOEND ENABLE_HEALTH_DEBUG_SECRET EXCEPTION_LOG_TYPE FEATURE_OTEL_TRACING
        FEATURE_SUPERUSER_CONFIGDUMP GLOBAL_PROMETHEUS_STATS_FREQUENCY GREENLET_TRACING HEALTH_CHECKER
        HEALTH_CHECKER_INSTANCE_CHECK_PREFERRED_STORAGE JSONIFY_PRETTYPRINT_REGULAR LOGGING_LEVEL OTEL_CONFIG
        OTEL_TRACING_EXCLUDED_URLS PROFILING_TYPE PROMETHEUS_NAMESPACE PROMETHEUS_PUSHGATEWAY_URL PROPAGATE_EXCEPTIONS
        PYROSCOPE_APPLICATION_NAME PYROSCOPE_SERVER_ADDRESS QUEUE_CLEANUP_FREQUENCY QUEUE_METRICS_TYPE
        QUEUE_WORKER_METRICS_REFRESH_SECONDS SENTRY_DSN SENTRY_ENVIRONMENT SENTRY_PROFILES_SAMPLE_RATE
        SENTRY_PUBLIC_DSN SENTRY_SAMPLE_RATE SENTRY_TRACES_SAMPLE_RATE SETUP_COMPLETE STAGGER_WORKERS
        SYSTEM_SERVICES_PATH SYSTEM_SERVICE_BLACKLIST TESTING TRACKED_NAMESPACES V3_UPGRADE_MODE""",
    "Quay's nginx; in front of this service stands a proxy of your own": """
        EXTERNAL_TLS_TERMINATION FEATURE_LISTEN_IP_VERSION FEATURE_PROXY_PROTOCOL MANIFESTS_ENDPOINT_READ_TIMEOUT
        NON_RATE_LIMITED_NAMESPACES PROXY_COUNT SSL_CIPHERS SSL_CIPHERSUITES SSL_PROTOCOLS TRUSTED_PROXY_CIDR
        V1_ONLY_DOMAIN""",
    "keys and tokens that Quay's own services prove themselves with": """
        EXPIRED_SERVICE_KEY_TTL_SEC INSTANCE_SERVICE_KEY_EXPIRATION INSTANCE_SERVICE_KEY_KID_LOCATION
        INSTANCE_SERVICE_KEY_LOCATION INSTANCE_SERVICE_KEY_REFRESH SIGNED_GRANT_EXPIRATION_SEC
        UNAPPROVED_SERVICE_KEY_TTL_SEC""",
    "garbage and tags that Quay itself collects; of a Quay's registry nothing is deleted here": """
        AUTOPRUNE_DEFAULT_POLICY_TIMEOUT AUTOPRUNE_FETCH_REPOSITORIES_PAGE_LIMIT AUTOPRUNE_FETCH_TAGS_PAGE_LIMIT
        AUTOPRUNE_TASK_RUN_MINIMUM_INTERVAL_MINUTES AUTO_PRUNING_BATCH_SIZE AUTO_PRUNING_DEFAULT_POLICY_BATCH_SIZE
        AUTO_PRUNING_POLL_PERIOD BLOBUPLOAD_CLEANUP_FREQUENCY BLOBUPLOAD_DELETION_DATE_THRESHOLD
        CHUNK_CLEANUP_QUEUE_NAME CLEAN_BLOB_UPLOAD_FOLDER DEFAULT_NAMESPACE_AUTOPRUNE_POLICY FEATURE_AUTO_PRUNE
        FEATURE_CHANGE_TAG_EXPIRATION FEATURE_CLEAR_EXPIRED_RAC_ENTRIES FEATURE_ENABLE_STALE_MPU_CLEANUP
        FEATURE_IMMUTABLE_TAGS_CAN_EXPIRE FEATURE_NAMESPACE_GARBAGE_COLLECTION FEATURE_REPOSITORY_GARBAGE_COLLECTION
        GARBAGE_COLLECTION_FREQUENCY LABELED_EXPIRATION_MAXIMUM LABELED_EXPIRATION_MINIMUM
        NAMESPACE_GC_GRACE_PERIOD_ALLOWLIST NAMESPACE_GC_GRACE_PERIOD_SECONDS NAMESPACE_GC_QUEUE_NAME
        PERMANENTLY_DELETE_TAGS PUSH_TEMP_TAG_EXPIRATION_SEC REPOSITORY_GC_QUEUE_NAME RESET_CHILD_MANIFEST_EXPIRATION
        TAG_EXPIRATION_OPTIONS""",
    "columns of its tables that Quay fills in the background": """
        FEATURE_MANIFEST_SIZE_BACKFILL FEATURE_MANIFEST_SUBJECT_BACKFILL MANIFEST_BACKFILL_WORKER_FREQUENCY
        MANIFEST_SUBJECT_BACKFILL_WORKER_FREQUENCY QUOTA_BACKFILL QUOTA_BACKFILL_BATCH_SIZE
        QUOTA_BACKFILL_POLL_PERIOD""",
    "quotas, as FEATURE_QUOTA_MANAGEMENT turns them on": """
        FEATURE_EDIT_QUOTA FEATURE_QUOTA_NOTIFICATIONS FEATURE_QUOTA_SUPPRESS_FAILURES FEATURE_VERIFY_QUOTA
        QUOTA_INVALIDATE_TOTALS QUOTA_NOTIFICATION_COOLDOWN_SECONDS QUOTA_NOTIFICATION_WORKER_POLL_PERIOD
        QUOTA_REGISTRY_SIZE_POLL_PERIOD QUOTA_TOTAL_DELAY_SECONDS""",
    "what Quay has no use for itself": """
        RESTRICTED_USER_INCLUDE_ROBOTS""",
    "services that AUTHENTICATION_TYPE may name, and that are asked nothing here": """
        JWT_GETUSER_ENDPOINT JWT_QUERY_ENDPOINT KEYSTONE_ADMIN_PASSWORD KEYSTONE_ADMIN_TENANT KEYSTONE_ADMIN_USERNAME
        KEYSTONE_AUTH_TIMEOUT KEYSTONE_AUTH_URL KEYSTONE_AUTH_VERSION""",
    "Docker's first protocol and manifests, which are served to nobody any more": """
        BLACKLIST_V2_SPEC FEATURE_RESTRICTED_V1_PUSH V1_PUSH_WHITELIST V22_NAMESPACE_BLACKLIST""",
    "what /v2/ of Quay takes and tells; here it is as the distribution specification has it": """
        CREATE_REPOSITORY_ON_PUSH_PUBLIC FEATURE_REFERRERS_API FEATURE_SPARSE_INDEX LABEL_KEY_RESERVED_PREFIXES
        OCI_NAMESPACE_WHITELIST V2_PAGINATION_SIZE""",
    "copies between storages, which Quay makes": """
        REPLICATION_QUEUE_NAME STORAGE_REPLICATION_PROCESSING_SECONDS""",
    "content trust, which Quay gave up": """
        FEATURE_SIGNING TUF_API_TIMEOUT_SECONDS TUF_GUN_PREFIX TUF_HOST TUF_READONLY_FAILOVER_ENDPOINTS TUF_SERVER""",
    "spam in descriptions of repositories, which nobody can write here": """
        FEATURE_SPAM_DETECTION SPAM_DETECTION_CLASSIFIER_PATH SPAM_DETECTION_CLASSIFIER_SHA256
        SPAM_DETECTION_CLASSIFIER_VERSION SPAM_DETECTION_DRY_RUN SPAM_DETECTION_FAIL_OPEN""",
    "what quay.io alone has": """
        BILLING_TYPE CDN_SPECIFIC_NAMESPACES ENTITLEMENT_RECONCILIATION
        ENTITLEMENT_RECONCILIATION_MARKETPLACE_ENDPOINT ENTITLEMENT_RECONCILIATION_USER_ENDPOINT FEATURE_BILLING
        FEATURE_ENTITLEMENT_RECONCILIATION FEATURE_RH_MARKETPLACE IP_DATA_API_KEY RECONCILIATION_FREQUENCY
        STRIPE_SECRET_KEY""",
}

PASSED_OVER: Mapping[str, str] = {key: reason for reason, keys in _GROUPS.items() for key in keys.split()}
