"""Every column of Quay's that is read beside a live Quay, and what Quay has in it at each step of its life.

`READ` is what `registry-verbs check`, and the start of a server, look for in a Quay's database; a newer schema will do
as long as these are there. Columns that only a registry of our own writes are in data/tables.py alone. What is said
here was read in quay/quay at its development branch of 2026-08-21 (data/database.py and data/model/*) and seen in the
databases under test/quay, which these models filled.
"""

from collections.abc import Mapping

_ID = "the row's number, which never changes"
_NAME = "a word of an enumeration, written when Quay's database is made"

READ: Mapping[str, Mapping[str, str]] = {
    "user": {
        "id": _ID,
        "username": "the name of a user, an organization or a robot (OWNER+NAME). A namespace that is being deleted is"
        " renamed to a UUID and disabled at once, and its rows follow later",
        "email": "an address, unique among users; robots and organizations have a UUID or random letters there",
        "password_hash": "bcrypt, $2b$ with 12 rounds, older ones $2a$. Null for robots, organizations, and users of"
        " LDAP, OIDC or another directory",
        "organization": "true for organizations, which nobody logs in as",
        "robot": "true for robots",
        "enabled": "true from the start; false when an administrator disables the user, or deletes the namespace. A"
        " robot's own stays true when its owner is disabled",
        "invalid_login_attempts": "logins in a row that failed, 0 after one that did not",
        "last_invalid_login": "when the last login failed, UTC; when the row was made, for who never failed",
    },
    "repository": {
        "id": _ID,
        "namespace_user_id": "whose it is. May be null in rows from before namespaces had rows; those are not found",
        "name": "the name after the namespace, with slashes since FEATURE_EXTENDED_REPOSITORY_NAMES; upper case is"
        " possible. A repository that is marked for deletion is renamed to a UUID",
        "visibility_id": "public or private; changed by its administrators at any time",
        "kind_id": "image, or application: those of App Registry, which hold no images",
        "state": "0 normal, 1 read-only, 2 mirror, 3 marked for deletion, 4 mirror of an organization. 3 must not be"
        " seen, though its tags and manifests are there until a worker has deleted them",
    },
    "visibility": {"id": _ID, "name": _NAME},
    "repositorykind": {"id": _ID, "name": _NAME},
    "mediatype": {"id": _ID, "name": "media types of manifests, and of other things; a row is never changed"},
    "manifest": {
        "id": _ID,
        "repository_id": "each repository has a row of its own for the same digest",
        "digest": "of the bytes as they were pushed; for schema 1 of the payload without its signatures",
        "media_type_id": "as it was pushed",
        "manifest_bytes": "as it was pushed, to the byte. Empty where a proxy cache knows of a manifest by the index"
        " that names it and has not fetched it; written when somebody pulls it",
        "config_media_type": "null in rows from before the column, for indexes, and for schema 1",
        "subject": "what an artifact refers to; null in rows from before the column until a worker has filled it",
        "artifact_type": "as for `subject`",
    },
    "manifestchild": {
        "repository_id": "that of both manifests",
        "manifest_id": "an index or a manifest list",
        "child_manifest_id": "one that it names. Manifests that were not there when the index was pushed (a sparse"
        " index) have none",
    },
    "manifestblob": {
        "repository_id": "that of the manifest",
        "blob_id": "a layer or a configuration of a manifest, once each, also where it comes twice. Schema 1 has a row"
        " for each distinct blob. The manifest's own bytes have none",
    },
    "tag": {
        "id": _ID,
        "name": "as it was pushed. `$temp-…` for hidden ones, which hold on to what is just being pushed or belongs to"
        " an index",
        "repository_id": "whose tag it is",
        "manifest_id": "what it means. Null only in rows of Quay's past whose manifest was never filled in; those are"
        " not found",
        "lifetime_start_ms": "since when, in milliseconds since 1970. A tag that is moved gets a new row",
        "lifetime_end_ms": "null while the tag is alive; the time when it was moved or deleted; a time in the future"
        " where it expires by a label, a setting or a proxy cache. Rows that have ended stay for the time machine",
        "hidden": "true for `$temp-…`: not a tag that anybody may see, but its manifest is there",
    },
    "imagestorage": {
        "id": _ID,
        "uuid": "names the place of blobs whose `cas_path` is false: sharedimages/UUID/layer",
        "content_checksum": "the digest. Null in rows of layers that were pushed by Docker's first protocol and never"
        " finished; several rows may have the same one, from before Quay looked",
        "image_size": "bytes of the stored blob; null where nobody knew them, as in rows of that first protocol",
        "cas_path": "true: the place follows from the digest. False in rows from before 2015, and for layers of the"
        " first protocol. (`uploading`, beside it, is true in every row that a push has made since then, false or null"
        " in older ones, and means nothing)",
    },
    "imagestorageplacement": {
        "storage_id": "the blob. None for a blob that a proxy cache has not fetched yet",
        "location_id": "a storage that has it; several where storage is replicated, one row each. The storages that the"
        " configuration does not name any more stay",
    },
    "imagestoragelocation": {"id": _ID, "name": "a key of DISTRIBUTED_STORAGE_CONFIG, also one of the past"},
    "uploadedblob": {
        "repository_id": "where the blob was uploaded to, or mounted",
        "blob_id": "the blob; several rows for one that is uploaded again",
        "expires_at": "UTC; an hour after the upload (PUSH_TEMP_TAG_EXPIRATION_SEC). Until then the repository holds it"
        " without a manifest",
    },
    "proxycacheconfig": {
        "id": _ID,
        "organization_id": "the organization that is a cache; at most one row each",
        "upstream_registry": "HOST or HOST/NAMESPACE of what it is a cache of",
    },
    "team": {"id": _ID, "organization_id": "whose team it is", "role_id": "admin, creator or member"},
    "teamrole": {"id": _ID, "name": _NAME},
    "teammember": {
        "team_id": "the team. Those of a synced team are written by a worker of Quay's, every half hour",
        "user_id": "a user or a robot; invited people have a row elsewhere until they accept",
    },
    "role": {"id": _ID, "name": _NAME},
    "repositorypermission": {
        "team_id": "a team, or null",
        "user_id": "a user or a robot, or null. Whoever makes a repository gets a row with the role admin",
        "repository_id": "the repository",
        "role_id": "read, write or admin",
    },
    "loginservice": {"id": _ID, "name": _NAME},
    "federatedlogin": {
        "user_id": "a user of a directory, or a robot, which has its row as soon as it is made",
        "service_id": "ldap, jwtauthn, oidc and others, quayrobot for robots; at most one row of each for a user",
        "metadata_json": "`{}`; for a robot of a federation also whom it trusts, under federation_config, as JSON",
        "service_ident": "what the user is called there: the user name in LDAP, `sub` in a token. Written at the first"
        " login, and when a synced team gets the user",
    },
    "robotaccounttoken": {
        "id": _ID,
        "robot_account_id": "the robot; one row each",
        "token": "encrypted under DATABASE_SECRET_KEY; replaced when the token is renewed",
    },
    "appspecificauthtoken": {
        "id": _ID,
        "user_id": "whose token it is",
        "token_name": "the first 60 characters of the token",
        "token_secret": "the others, encrypted under DATABASE_SECRET_KEY",
        "expiration": "UTC, null where it has none; a token that is revoked has no row",
    },
    "oauthaccesstoken": {
        "authorized_user_id": "who gave it",
        "scope": "words like repo:read, separated by spaces or commas",
        "token_name": "the first 20 characters of the token",
        "token_code": "bcrypt of the others",
        "expires_at": "UTC; about ten years after for those that the user interface makes. One that is revoked has no"
        " row",
    },
    "accesstoken": {
        "id": _ID,
        "token_name": "the first 32 characters of the token",
        "token_code": "the others, encrypted under DATABASE_SECRET_KEY",
        "repository_id": "the one repository that it is good for",
        "role_id": "read, write or admin",
    },
    "servicekey": {
        "kid": "what a signed token calls the key",
        "service": "`quay` for Quay's own instances (INSTANCE_SERVICE_KEY_SERVICE)",
        "jwk": "the public key, RFC 7517",
        "expiration_date": "UTC; moved on by the instance while it runs, two hours ahead. Null for keys without an end",
        "approval_id": "null until the key is approved; those of Quay's own instances are at once",
    },
}
