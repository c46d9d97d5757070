"""The matrix: everybody, at every route of our application by every method, on a public, a private and an absent
repository.

It is made from the URL map. To add a route, add rows to RULES: `(endpoint, method)` and what one needs for it; HEAD is
as GET, and OPTIONS needs nothing, or an account for the admin API. `Row` takes a query and a body where the route wants
some, in which `{repository}` stands for the repository's name. An argument of the URL that VALUES does not know yet
needs a value there; it may be a function that makes what is to be there. What is tested is who comes in: what is then
answered is tested elsewhere.
"""

import base64
import json
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from data.derivedimages import Lease, NewDerived
from data.jobs import NewJob
from endpoints.access import Action
from test.images import INDEX, Image, Layer
from test.layers import file
from test.people import PASSWORD, ROBOT_TOKEN, SECRET, People
from test.place import Place
from test.waiting import storing_is_waited_for

IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])
REPOSITORIES = ("public", "private", "absent")
_NUMBERS = count()

# --- Who --------------------------------------------------------------------------------------------------------------

WHO = ("anonymous", "stranger", "reader", "writer", "admin", "owner", "creator", "acme+ci", "disabled", "superuser")
ROLES: Mapping[str, frozenset[Action]] = {
    "reader": frozenset({Action.READ}),
    "writer": frozenset({Action.READ, Action.WRITE, Action.DELETE}),
    "acme+ci": frozenset({Action.READ, Action.WRITE, Action.DELETE}),
    "admin": frozenset({Action.READ, Action.WRITE, Action.DELETE, Action.ADMIN}),
}
"""What somebody may do with the public and the private repository, by what they are granted there."""

EVERYWHERE: Mapping[str, frozenset[Action]] = {
    "owner": frozenset(Action),
    "creator": frozenset({Action.CREATE}),
    "superuser": frozenset(Action),
}
"""What somebody may do with any repository of the organization, also with one that is not there."""


def may(who: str, action: Action, repository: str) -> bool:
    if who == "disabled":
        return False
    if repository == "public" and action is Action.READ:
        return True
    granted = EVERYWHERE.get(who, frozenset())
    if repository != "absent":
        granted |= ROLES.get(who, frozenset())
    return action in granted


def login(who: str) -> dict[str, str]:
    if who == "anonymous":
        return {}
    password = ROBOT_TOKEN if "+" in who else PASSWORD
    return {"Authorization": "Basic " + base64.b64encode(f"{who}:{password}".encode()).decode()}


# --- What is needed ---------------------------------------------------------------------------------------------------

Needs = Callable[[str, str], bool]
"""Tells whether who asks comes in, by who it is and the kind of the repository."""


def everybody(_: str, __: str) -> bool:
    return True


def whoever_is_not_refused(who: str, _: str) -> bool:
    return who != "disabled"


def whoever_is_logged_in(who: str, _: str) -> bool:
    return who not in ("anonymous", "disabled")


def to_read(who: str, repository: str) -> bool:
    return may(who, Action.READ, repository)


def to_look(who: str, repository: str) -> bool:
    """As reading; and who could make the repository is told that it is not there."""
    return may(who, Action.READ, repository) or (repository == "absent" and may(who, Action.CREATE, repository))


def to_push(who: str, repository: str) -> bool:
    return may(who, Action.CREATE if repository == "absent" else Action.WRITE, repository)


def to_write(who: str, repository: str) -> bool:
    return may(who, Action.WRITE, repository)


def to_delete(who: str, repository: str) -> bool:
    return may(who, Action.DELETE, repository)


def to_administer(who: str, repository: str) -> bool:
    return may(who, Action.ADMIN, repository)


def to_administer_what_is_there(who: str, repository: str) -> bool:
    """Of what is not there only who may see everything is told."""
    return who == "superuser" or (repository != "absent" and may(who, Action.ADMIN, repository))


def nobody_by_a_password(_: str, __: str) -> bool:
    return False


def superusers(who: str, _: str) -> bool:
    return who == "superuser"


@dataclass(frozen=True)
class Row:
    """What one needs for a route, and what is sent to it. `{repository}` stands for the repository's name."""

    needs: Needs
    query: str = ""
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def row(needs: Needs | Row) -> Row:
    return needs if isinstance(needs, Row) else Row(needs)


_OF_ONE = "namespace=acme&repository={repository}"
VERBS, ADMIN, V2 = "registry_verbs", "registry_verbs_admin", "registry_verbs_v2"
RULES: Mapping[tuple[str, str], Needs | Row] = {
    ("registry_verbs_discovery.root", "GET"): everybody,
    ("registry_verbs_discovery.repository", "GET"): everybody,
    ("registry_verbs_discovery.signing_key", "GET"): everybody,
    ("registry_verbs_federation.robot_token", "GET"): nobody_by_a_password,
    ("registry_verbs_metrics.metrics", "GET"): everybody,
    ("registry_verbs_health.health", "GET"): everybody,
    (f"{VERBS}.ping", "GET"): everybody,
    (f"{VERBS}.verbs", "GET"): everybody,
    (f"{VERBS}.unknown", "GET"): everybody,
    (f"{VERBS}.derived", "GET"): to_read,
    (f"{VERBS}.appc", "GET"): to_read,
    (f"{VERBS}.appc_checksum", "GET"): to_read,
    (f"{VERBS}.appc_signature", "GET"): to_read,
    (f"{ADMIN}.document", "GET"): everybody,
    (f"{ADMIN}.ask", "POST"): Row(to_administer, body={"images": ["acme/{repository}:1.0"], "verbs": ["rootfs"]}),
    (f"{ADMIN}.list_jobs", "GET"): Row(to_administer, query=_OF_ONE),
    (f"{ADMIN}.cancel_jobs", "DELETE"): Row(to_administer_what_is_there, query="group={group}"),
    (f"{ADMIN}.show_job", "GET"): to_administer_what_is_there,
    (f"{ADMIN}.cancel_job", "DELETE"): to_administer_what_is_there,
    (f"{ADMIN}.list_derived", "GET"): Row(to_administer, query=_OF_ONE),
    (f"{ADMIN}.show_derived", "GET"): to_administer_what_is_there,
    (f"{ADMIN}.delete_derived", "DELETE"): to_administer_what_is_there,
    ("registry_verbs_analysis.show", "GET"): to_read,
    (f"{V2}.version", "GET"): whoever_is_logged_in,
    (f"{V2}.auth", "GET"): Row(whoever_is_not_refused, query="scope=repository:acme/{repository}:pull,push"),
    (f"{V2}.auth_by_form", "POST"): everybody,  # who it is stands in the form: test_auth.py
    (f"{V2}.get_manifest", "GET"): to_look,
    (f"{V2}.put_manifest", "PUT"): Row(to_push, body={"schemaVersion": 2, "mediaType": INDEX, "manifests": []}),
    (f"{V2}.delete_manifest", "DELETE"): to_delete,
    (f"{V2}.get_blob", "GET"): to_look,
    (f"{V2}.delete_blob", "DELETE"): to_delete,
    (f"{V2}.start_upload", "POST"): to_push,
    (f"{V2}.get_upload", "GET"): to_write,
    (f"{V2}.patch_upload", "PATCH"): to_write,
    (f"{V2}.put_upload", "PUT"): Row(to_write, query=f"digest=sha256:{'0' * 64}"),
    (f"{V2}.delete_upload", "DELETE"): to_write,
    (f"{V2}.list_tags", "GET"): to_look,
    (f"{V2}.list_referrers", "GET"): to_look,
    (f"{V2}.list_repositories", "GET"): whoever_is_not_refused,
    **{(f"{V2}.unknown", method): everybody for method in ("GET", "POST", "PUT", "PATCH", "DELETE")},
}


@dataclass(frozen=True)
class Registry:
    """The application, and what is made in it for a request."""

    app: Flask
    images: Mapping[str, str]

    def job(self, repository: str) -> tuple[str, str]:
        """Return id and group of a new job; of none, for a repository that is not there."""
        if repository not in REPOSITORIES[:2]:
            return uuid.uuid4().hex, uuid.uuid4().hex
        platform = f"linux/test{next(_NUMBERS)}"
        new = NewJob(verb="squash", namespace="acme", repository=repository, reference="1.0", platform=platform)
        (job,) = self.app.extensions["registry_verbs"].jobs.add([new], asked_by="test")
        return job.id, job.group_id

    def derived(self, repository: str) -> str:
        key = uuid.uuid4().hex * 2
        if repository in REPOSITORIES[:2]:
            new = NewDerived(
                key=key,
                namespace="acme",
                repository=repository,
                reference="1.0",
                manifest_digest=self.images[repository],
                verb="squash",
                platform="linux/amd64",
                compression="gzip",
                media_type="application/gzip",
                file_name="file.tar.gz",
            )
            lease = self.app.extensions["registry_verbs"].derived.claim(new, host="a.host", asked_by="test")
            assert isinstance(lease, Lease)
        return key


Value = str | Callable[[Registry, str], str]
VALUES: Mapping[str, Value] = {
    "namespace": "acme",
    "repository": lambda _, repository: repository,
    "name": lambda _, repository: f"acme/{repository}",
    "tag": "1.0",
    "reference": "2.0",  # what is deleted so is nobody else's
    "verb": "rootfs",
    "os": "linux",
    "arch": "amd64",
    "digest": f"sha256:{'0' * 64}",
    "upload_id": "0" * 32,
    "job_id": lambda registry, repository: registry.job(repository)[0],
    "key": lambda registry, repository: registry.derived(repository),
    "_": "something",
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    place = Place(tmp_path_factory.mktemp("place"), {"DATABASE_SECRET_KEY": SECRET, "SUPER_USERS": ["superuser"]})
    place.services()
    people = People(place.engine)
    for who in set(WHO) - {"anonymous", "acme+ci", "disabled"}:
        people.user(who)
    people.user("disabled", enabled=False)
    people.organization("acme", {"owners:admin": ("owner",), "creators:creator": ("creator",)})
    people.robot("acme+ci")
    granted = {"reader": "read", "writer": "write", "admin": "admin", "acme+ci": "write", "disabled": "admin"}
    for name in ("public", "private", "kept", "kept2"):
        people.repository(f"acme/{name}", granted, public=name == "public")
    images = {name: place.push(f"acme/{name}:1.0", IMAGE) for name in ("public", "private", "kept", "kept2")}
    return Registry(place.app(), images)


def rules() -> Iterator[tuple[Rule, str]]:
    app = Place(_nowhere()).app()
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            yield rule, method


@cache
def _nowhere() -> Path:
    return Path(tempfile.mkdtemp())


_RULES = list(rules())


def named(rule: Rule, method: str) -> tuple[str, str]:
    return rule.endpoint, "GET" if method == "HEAD" else method


def ask(registry: Registry, rule: Rule, method: str, who: str, repository: str) -> TestResponse:
    told = row(RULES[named(rule, method)])
    values: dict[str, str] = {}
    for argument in rule.arguments:
        value = VALUES[argument]
        values[argument] = value if isinstance(value, str) else value(registry, repository)
    built = rule.build(values, append_unknown=False)
    assert built is not None
    group = registry.job(repository)[1] if "{group}" in told.query else ""
    query = told.query.replace("{repository}", repository).replace("{group}", group)
    body = None if told.body is None else json.dumps(told.body).replace("{repository}", repository)
    return registry.app.test_client().open(
        built[1], method=method, query_string=query, data=body, headers={**told.headers, **login(who)}
    )


# --- The tests --------------------------------------------------------------------------------------------------------


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert {named(*each) for each in _RULES} == set(RULES)


def test_every_argument_has_a_value() -> None:
    assert {argument for rule, _ in _RULES for argument in rule.arguments} <= set(VALUES)


@pytest.mark.parametrize(("rule", "method"), _RULES, ids=lambda each: getattr(each, "rule", each))
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_who_comes_in(registry: Registry, rule: Rule, method: str, repository: str) -> None:
    needs = row(RULES[named(rule, method)]).needs
    for who in WHO:
        name = f"absent{next(_NUMBERS)}" if repository == "absent" else repository  # a push may have made the last one
        answer = ask(registry, rule, method, who, name)
        answer.close()
        if needs(who, repository):
            assert answer.status_code not in (401, 403), (who, answer.data)
            assert answer.status_code < 500, (who, answer.data)
        else:
            unknown = who in ("anonymous", "disabled") or needs is nobody_by_a_password
            assert answer.status_code == (401 if unknown else 403), (who, answer.data)
            assert answer.status_code != 401 or answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(("rule", "method"), _RULES, ids=lambda each: getattr(each, "rule", each))
def test_who_may_not_read_is_told_the_same_of_what_is_there_and_what_is_not(
    registry: Registry, rule: Rule, method: str
) -> None:
    needs = row(RULES[named(rule, method)]).needs
    for who in ("anonymous", "stranger", "disabled"):
        if needs(who, "private"):
            continue
        there, absent = (ask(registry, rule, method, who, name) for name in ("private", "absent"))
        assert there.status_code == absent.status_code
        assert _blank(there) == _blank(absent)


def _blank(answer: TestResponse) -> tuple[str, list[tuple[str, str]]]:
    """Return what is answered without what differs anyhow: the name that was asked for, and ids."""

    def without(text: str) -> str:
        return re.sub(r"\b(?:private|absent)\b|[0-9a-f]{32,}|\b\d{10,}-[0-9a-f]+\b", "…", text)

    headers = [(name, without(text)) for name, text in answer.headers if name not in ("Content-Length", "X-Request-ID")]
    return without(answer.text), headers


@pytest.mark.parametrize("rule", [rule for rule, method in _RULES if method != "HEAD"], ids=lambda each: each.rule)
def test_options_tell_methods_and_no_more(registry: Registry, rule: Rule) -> None:
    values = {each: value if isinstance(value := VALUES[each], str) else "private" for each in rule.arguments}
    built = rule.build(values, append_unknown=False)
    assert built is not None
    answer = registry.app.test_client().open(built[1], method="OPTIONS")
    if rule.endpoint.startswith(ADMIN) and rule.endpoint != f"{ADMIN}.document":
        assert answer.status_code == 401
    else:
        assert (answer.status_code, answer.data) == (200, b"")


# --- Admin tokens, and what is of no one repository -------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/derived", "/api/v1/jobs?namespace=acme"])
def test_lists_of_all_are_for_superusers_and_admin_tokens(registry: Registry, path: str) -> None:
    client = registry.app.test_client()
    statuses = {who: client.get(path, headers=login(who)).status_code for who in WHO}
    assert statuses == dict.fromkeys(WHO, 403) | {"anonymous": 401, "disabled": 401, "superuser": 200}
    token = registry.app.extensions["registry_verbs"].tokens.create(f"ci{next(_NUMBERS)}")
    assert client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_globs_over_several_repositories_are_for_superusers(registry: Registry) -> None:
    def asked(who: str, **body: Any) -> int:
        body = {"verbs": ["rootfs"], **body}
        return registry.app.test_client().post("/api/v1/jobs", json=body, headers=login(who)).status_code

    assert asked("owner", repositories="acme/*") == 403
    assert asked("superuser", repositories="acme/*") == 202
    assert asked("admin", repositories="acme/kept", tags="1.*") == 202
    assert asked("admin", repositories="acme/absent") == 403
    assert asked("admin", images=["acme/kept:1.0", "acme/kept2:1.0"]) == 202
    assert asked("admin", images=["acme/kept:1.0", "acme/elsewhere:1.0"]) == 403
    assert asked("writer", repositories="acme/kept") == 403


def test_an_admin_token_is_good_for_the_admin_api_alone(registry: Registry) -> None:
    token = registry.app.extensions["registry_verbs"].tokens.create(f"ci{next(_NUMBERS)}")
    headers = {"Authorization": f"Bearer {token}"}
    client = registry.app.test_client()
    for path in ("/c1/rootfs/acme/public/1.0", "/v2/", "/v2/auth"):
        assert client.get(path, headers=headers).status_code == 401


def test_wrong_credentials_are_refused_where_none_are_needed(registry: Registry) -> None:
    client = registry.app.test_client()
    for given in ("Basic YTpi", "Basic", "Basic !!", "Bearer x", "Bearer", "Digest x", "x"):
        answer = client.get("/c1/rootfs/acme/public/1.0", headers={"Authorization": given})
        assert answer.status_code == 401, given
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_who_asked_is_written_down_with_the_job(registry: Registry) -> None:
    body = {"images": ["acme/kept:1.0"], "verbs": ["aci"]}
    answer = registry.app.test_client().post("/api/v1/jobs", json=body, headers=login("admin"))
    assert answer.get_json()["jobs"][0]["asked_by"] == "admin"


def test_a_group_with_another_s_image_is_not_cancelled(registry: Registry) -> None:
    jobs = registry.app.extensions["registry_verbs"].jobs
    new = [
        NewJob(verb="squash", namespace="acme", repository=name, reference=f"r{next(_NUMBERS)}")
        for name in ("private", "elsewhere")
    ]
    first, _ = jobs.add(new, asked_by="test")
    client = registry.app.test_client()
    path = f"/api/v1/jobs?group={first.group_id}"
    assert client.delete(path, headers=login("admin")).status_code == 403
    assert client.delete(path, headers=login("owner")).get_json() == {"cancelled": 2}


def test_what_is_stored_is_not_served_past_a_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storing_is_waited_for(monkeypatch)
    place = Place(tmp_path)
    place.services()
    people = People(place.engine)
    people.user("owner")
    people.user("reader")
    people.repository("owner/app", {"reader": "read"})
    place.push("owner/app:1.0", IMAGE)
    client = place.app().test_client()
    path = "/c1/squash/owner/app/1.0"
    with client.get(path, headers=login("reader")) as first:
        assert (first.status_code, len(first.data) > 0) == (200, True)
    etag = {"If-None-Match": first.headers["ETag"]}
    assert len(place.derived()) == 1
    assert client.get(path, headers={**login("reader"), **etag}).status_code == 304
    place.sql("DELETE FROM repositorypermission")
    for more in ({}, etag, {"Range": "bytes=0-9"}, {"If-Match": "*"}):
        for url in (path, f"{path}.sha256"):
            for method in ("GET", "HEAD"):
                assert client.open(url, method=method, headers={**login("reader"), **more}).status_code == 403
                assert client.open(url, method=method, headers=more).status_code == 401
