"""The admin API, and its document: every answer given here is held against what the document says of it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from werkzeug.test import TestResponse

from data.derivedimages import Lease, NewDerived
from data.jobs import Job, JobState, NewJob
from data.owntables import DatabaseUnavailable
from data.storage.base import StorageUnavailable
from endpoints.extension import RegistryVerbs
from endpoints.services import Services
from endpoints.stock import unended
from test.images import Image, Layer
from test.layers import file
from test.place import Place

IMAGE = Image([Layer([file(b"etc/hostname", b"here\n")])])
ABSENT = "0" * 64


@dataclass(frozen=True)
class Api:
    """The API of a place, asked with a token, and every answer checked."""

    place: Place
    app: Flask
    token: str

    @property
    def services(self) -> Services:
        services: Services = self.app.extensions["registry_verbs"]
        return services

    def ask(self, method: str, path: str, **more: Any) -> TestResponse:
        client: FlaskClient = self.app.test_client()
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        url = path if path.startswith("/api/v1") else f"/api/v1{path}"
        answer = client.open(url, method=method, headers=headers, **more)
        check(self.document, method, url, answer)
        if "json" in more and answer.status_code < 300:
            schema(self.document, "#/components/schemas/Request").validate(more["json"])
        return answer

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.data
        return answer.get_json()

    def error(self, method: str, path: str, status: int, **more: Any) -> tuple[str, str]:
        """Return the code and the text of the one error that is answered with `status`."""
        answer = self.ask(method, path, **more)
        assert answer.status_code == status, answer.data
        (error,) = answer.get_json()["errors"]
        return error["code"], error["message"]

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = self.app.test_client().get("/api/v1/openapi.json").get_json()
        return document

    def job(self, number: int = 0, **more: Any) -> Job:
        new = NewJob(verb="squash", namespace="acme", repository=f"app{number}", reference="v1", **more)
        (job,) = self.services.jobs.add([new], asked_by="test")
        return job

    def derived(self, key: str, **more: str) -> Lease:
        """Begin a derived image, as a maker does."""
        asked = {
            "namespace": "acme",
            "repository": "app",
            "reference": "v1",
            "manifest_digest": f"sha256:{ABSENT}",
            "verb": "squash",
            "platform": "linux/amd64",
            "compression": "gzip",
            "media_type": "application/gzip",
            "file_name": "acme_app_v1.tar.gz",
        }
        lease = self.services.derived.claim(NewDerived(key=key, **(asked | more)), host="a.host", asked_by="somebody")
        assert isinstance(lease, Lease)
        return lease

    def complete(self, key: str, content: bytes = b"content", **more: str) -> Lease:
        lease = self.derived(key, **more)
        with self.services.storage.preferred.create(lease.path) as writer:
            writer.write(content)
            writer.commit()
        assert self.services.derived.complete(lease, size=len(content), sha256="1" * 64)
        return lease


def schema(document: dict[str, Any], pointer: str) -> Any:
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    return OAS31Validator(
        {"$ref": f"urn:document{pointer}"},
        registry=Registry().with_resource("urn:document", resource),
        format_checker=OAS31Validator.FORMAT_CHECKER,
    )


def check(document: dict[str, Any], method: str, url: str, answer: TestResponse) -> None:
    """Hold an answer against the document: path, method, status, headers, body."""
    (server,) = document["servers"]
    path = urlsplit(url).path.removeprefix(server["url"])
    patterns = {re.sub(r"\{[^}]+\}", "[^/]+", template): template for template in document["paths"]}
    (template,) = [template for pattern, template in patterns.items() if re.fullmatch(pattern, path)]
    operation = document["paths"][template][method.lower()]
    described = operation["responses"][str(answer.status_code)]
    pointer = f"#/paths/{template.replace('/', '~1')}/{method.lower()}/responses/{answer.status_code}"
    if "$ref" in described:
        pointer = described["$ref"]
        described = document["components"]["responses"][pointer.rpartition("/")[2]]
    content = described.get("content")
    if content is None:
        assert answer.data == b""
    else:
        assert answer.mimetype == "application/json"
        schema(document, f"{pointer}/content/application~1json/schema").validate(answer.get_json())
    assert {"Link", "WWW-Authenticate"} & set(answer.headers.keys()) <= described.get("headers", {}).keys()
    assert answer.headers["Cache-Control"] == "no-store"
    asked = {name.partition("=")[0] for name in urlsplit(url).query.split("&") if name}
    known = {parameter["name"] for parameter in operation.get("parameters", ())}
    assert asked <= known or answer.status_code >= 400


@pytest.fixture
def api(tmp_path: Path) -> Api:
    place = Place(tmp_path)
    for name in ("acme/app:v1", "acme/app:v2", "acme/tool:v1", "other/app:v1"):
        place.push(name, IMAGE)
    app = place.app()
    return Api(place, app, app.extensions["registry_verbs"].tokens.create("ci"))


# --- The document -----------------------------------------------------------------------------------------------------


def test_the_document_is_valid_openapi(api: Api) -> None:
    OpenAPIV31SpecValidator(api.document).validate()


def test_the_document_describes_every_route_and_no_other(api: Api) -> None:
    routes = {
        (re.sub(r"<(?:path:|job_)?(\w+)>", r"{\1}", rule.rule.removeprefix("/api/v1")), method.lower())
        for rule in api.app.url_map.iter_rules()
        if rule.endpoint.startswith(("registry_verbs_admin.", "registry_verbs_analysis."))
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {
        (path, method) for path, item in api.document["paths"].items() for method in item if method != "parameters"
    }
    assert routes == described


def test_the_document_is_for_everybody_and_knows_where_it_is(api: Api) -> None:
    answer = api.app.test_client().get("/api/v1/openapi.json")
    assert answer.status_code == 200
    assert answer.get_json()["servers"] == [{"url": "/api/v1"}]
    assert "aci, bundle, " in answer.text
    check(answer.get_json(), "GET", "/api/v1/openapi.json", answer)


def test_the_checks_of_these_tests_find_what_is_wrong(api: Api) -> None:
    document = api.document
    del document["components"]["schemas"]["Job"]["properties"]["worker"]
    answer = api.ask("POST", "/jobs", json={"images": ["acme/app:v1"], "verbs": ["squash"]})
    with pytest.raises(Exception, match="worker"):
        check(document, "POST", "/api/v1/jobs", answer)


# --- Access -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/jobs", "/jobs/1", "/derived", f"/derived/{ABSENT}"])
def test_nothing_is_told_without_a_token(api: Api, path: str) -> None:
    answer = api.app.test_client().get(f"/api/v1{path}")
    check(api.document, "GET", f"/api/v1{path}", answer)
    assert answer.status_code == 401
    assert answer.headers.getlist("WWW-Authenticate") == ['Bearer realm="localhost"', 'Basic realm="localhost"']
    assert answer.get_json()["errors"][0]["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize(
    "given", ["Bearer rvt_wrong", f"Bearer rvt_{'x' * 43}", "Basic Y2k6Y2k=", "Bearer", "rvt_x", "Bearer \N{SNOWMAN}"]
)
def test_a_token_that_is_not_valid_is_told_apart(api: Api, given: str) -> None:
    answer = api.ask("GET", "/jobs", headers={"Authorization": given.encode("utf-8").decode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_token_that_was_revoked_opens_nothing_any_more(api: Api) -> None:
    api.get("/jobs")
    assert api.services.tokens.revoke("ci")
    assert api.error("GET", "/jobs", 401)[0] == "UNAUTHORIZED"


def test_a_database_that_is_away_is_a_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("it is away")

    monkeypatch.setattr(type(api.services.jobs), "list", fail)
    assert api.error("GET", "/jobs", 503) == ("DATABASE_UNAVAILABLE", "it is away")


def test_what_nobody_foresaw_tells_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(api.services.jobs), "list", fail)
    code, message = api.error("GET", "/jobs", 500)
    assert (code, "secret" in message) == ("UNKNOWN", False)


# --- Asking -----------------------------------------------------------------------------------------------------------


def test_images_are_asked_for_by_name(api: Api) -> None:
    answer = api.ask("POST", "/jobs", json={"images": ["acme/app:v1"], "verbs": ["squash"]})
    assert answer.status_code == 202
    (job,) = answer.get_json()["jobs"]
    expected = {
        "state": "queued",
        "verb": "squash",
        "namespace": "acme",
        "repository": "app",
        "reference": "v1",
        "platform": None,
        "compression": None,
        "asked_by": "ci",
        "attempts": 0,
    }
    assert expected.items() <= job.items()
    assert api.get(f"/jobs/{job['id']}") == job
    assert api.get("/jobs") == {"jobs": [job]}


def test_images_are_asked_for_by_globs(api: Api) -> None:
    body = {
        "repositories": "acme/*",
        "tags": "v*",
        "verbs": ["squash", "rootfs"],
        "platforms": ["linux/amd64"],
        "compression": "zstd",
    }
    jobs = api.ask("POST", "/jobs", json=body).get_json()["jobs"]
    assert len(jobs) == 6
    assert len({job["group"] for job in jobs}) == 1
    assert {(job["platform"], job["compression"]) for job in jobs} == {("linux/amd64", "zstd")}
    assert api.ask("POST", "/jobs", json={"repositories": "*/app", "verbs": ["aci"]}).status_code == 202


def test_what_has_been_asked_for_is_not_asked_again(api: Api) -> None:
    body = {"images": ["acme/app:v1", "acme/app:v1"], "verbs": ["squash"]}
    first, second = (api.ask("POST", "/jobs", json=body).get_json()["jobs"] for _ in range(2))
    assert len(first) == 1
    assert first == second


@pytest.mark.parametrize(
    ("body", "said", "by_schema"),
    [
        ({"verbs": ["squash"]}, "either images or repositories", True),
        (
            {"images": ["acme/app:v1"], "repositories": "*/*", "verbs": ["squash"]},
            "either images or repositories",
            True,
        ),
        ({"images": ["acme/app:v1"], "tags": "*", "verbs": ["squash"]}, "tags goes with repositories", True),
        ({"images": [], "verbs": ["squash"]}, "either images or repositories", True),
        ({"images": ["acme"], "verbs": ["squash"]}, "'acme' is not the name of an image", False),
        ({"images": "acme/app:v1", "verbs": ["squash"]}, "allowed: a list of images", True),
        ({"images": ["acme/app:v1"]}, "verbs is missing", True),
        ({"images": ["acme/app:v1"], "verbs": ["floppy"]}, "there are: aci, bundle, ", False),
        ({"images": ["acme/app:v1"], "verbs": ["squash"], "platforms": ["amd64"]}, "platforms: 'amd64'", True),
        ({"images": ["acme/app:v1"], "verbs": ["squash"], "compression": "xz"}, "none, gzip, zstd", True),
        ({"repositories": "acme", "verbs": ["squash"]}, "a glob of NAMESPACE/REPOSITORY", False),
        ({"repositories": 5, "verbs": ["squash"]}, "repositories is 5", True),
        ({"repository": "acme/app", "verbs": ["squash"]}, "'repository' is not a field", True),
        (["acme/app:v1"], "no object with fields", True),
    ],
)
def test_a_body_that_cannot_be_used_is_told_with_what_can(api: Api, body: Any, said: str, by_schema: bool) -> None:
    code, message = api.error("POST", "/jobs", 400, json=body)
    assert code == "REQUEST_INVALID"
    assert said in message
    # What is wrong within a text only the service can tell.
    assert schema(api.document, "#/components/schemas/Request").is_valid(body) is not by_schema


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_told(api: Api, body: bytes) -> None:
    assert "not JSON" in api.error("POST", "/jobs", 400, data=body)[1]


def test_a_body_that_is_too_large_is_not_read(api: Api) -> None:
    assert "more than 1048576 bytes" in api.error("POST", "/jobs", 400, data=b" " * (1 << 21))[1]


def test_an_image_that_is_not_there_is_a_404(api: Api) -> None:
    body = {"images": ["acme/app:v9"], "verbs": ["squash"]}
    assert api.error("POST", "/jobs", 404, json=body)[0] == "TAG_UNKNOWN"
    body = {"images": ["acme/absent:v9"], "verbs": ["squash"]}
    assert api.error("POST", "/jobs", 404, json=body)[0] == "NAME_UNKNOWN"
    globs = {"repositories": "nobody/*", "verbs": ["squash"]}
    assert api.error("POST", "/jobs", 404, json=globs)[0] == "NOTHING_MATCHES"


def test_too_much_at_once_is_a_422(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("endpoints.priming.MOST", 2)
    assert api.error("POST", "/jobs", 422, json={"repositories": "*", "verbs": ["squash"]})[0] == "TOO_MANY_JOBS"


def test_a_read_only_registry_is_looked_at_and_not_changed(api: Api) -> None:
    job, lease = api.job(), api.complete("a" * 64)
    app = Place(api.place.folder, {"REGISTRY_STATE": "readonly"}).app()
    frozen = Api(api.place, app, api.token)
    assert len(frozen.get("/jobs")["jobs"]) == 1
    assert frozen.get(f"/derived/{lease.key}")["state"] == "complete"
    body = {"images": ["acme/app:v1"], "verbs": ["squash"]}
    for method, path, more in (
        ("POST", "/jobs", {"json": body}),
        ("DELETE", f"/jobs/{job.id}", {}),
        ("DELETE", f"/jobs?group={job.group_id}", {}),
        ("DELETE", f"/derived/{lease.key}", {}),
    ):
        assert frozen.error(method, path, 409, **more)[0] == "REGISTRY_READONLY"
    assert api.get(f"/jobs/{job.id}")["state"] == "queued"
    assert len(api.place.derived()) == 1


# --- Jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_come_page_by_page_the_newest_first(api: Api) -> None:
    asked = [api.job(number).id for number in range(5)]
    seen, url = [], "/jobs?limit=2&verb=squash"
    pages = 0
    while url:
        answer = api.ask("GET", url)
        seen += [job["id"] for job in answer.get_json()["jobs"]]
        link = answer.headers.get("Link")
        url = re.fullmatch(r'<(/.+)>; rel="next"', link)[1] if link else ""  # type: ignore[index]
        pages += 1
    assert seen == sorted(asked, reverse=True)
    assert pages == 3


def test_jobs_are_chosen_by_what_they_are(api: Api) -> None:
    first, second = api.job(1), api.job(2)
    api.services.jobs.cancel(first.id)

    def chosen(query: str) -> list[str]:
        return [job["id"] for job in api.get(f"/jobs?{query}")["jobs"]]

    assert chosen("state=cancelled") == [first.id]
    assert chosen("state=queued&namespace=acme") == [second.id]
    assert chosen("repository=app1") == [first.id]
    assert chosen(f"group={second.group_id}") == [second.id]
    assert chosen("verb=aci") == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=asleep", "state is 'asleep'; allowed: queued, running, done, failed, cancelled"),
        ("limit=0", "limit is '0'; allowed: 1 to 1000"),
        ("limit=1001", "allowed: 1 to 1000"),
        ("limit=ten", "limit is 'ten'"),
        ("limit=%C2%B2", "limit is"),
        ("limit=9999999999999999999999", "allowed: 1 to 1000"),
        ("after=%00", "after is"),
        ("namespace=a&namespace=b", "namespace is given 2 times"),
        ("owner=me", "'owner' is not a parameter; allowed: group, namespace"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_told(api: Api, query: str, said: str) -> None:
    code, message = api.error("GET", f"/jobs?{query}", 400)
    assert code == "QUERY_INVALID"
    assert said in message


def test_a_job_that_runs_tells_how_far_it_is(api: Api) -> None:
    job = api.job()
    taken = api.services.jobs.take("a.worker", id=job.id)
    assert taken is not None
    key = "a" * 64
    lease = api.derived(key)
    api.services.derived.set_total(lease, 1000)
    api.services.derived.beat({lease.token: 600})
    api.services.jobs.found(taken, key)
    shown = api.get(f"/jobs/{job.id}")
    expected = {"state": "running", "key": key, "bytes_done": 600, "bytes_total": 1000, "worker": "a.worker"}
    assert expected.items() <= shown.items()
    assert api.get("/jobs?state=running")["jobs"] == [shown]
    api.services.jobs.done(taken, key)
    ended = api.get(f"/jobs/{job.id}")
    assert (ended["state"], ended["bytes_done"], ended["due"]) == ("done", None, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ended["finished"])


def test_a_job_that_failed_tells_why(api: Api) -> None:
    taken = api.services.jobs.take("a.worker", id=api.job().id)
    assert taken is not None
    api.services.jobs.fail(taken, "TAG_UNKNOWN: acme/app has no tag 'v1'")
    shown = api.get(f"/jobs/{taken.id}")
    assert (shown["state"], shown["reason"]) == ("failed", "TAG_UNKNOWN: acme/app has no tag 'v1'")


def test_a_job_is_cancelled_once_and_for_all(api: Api) -> None:
    job = api.job()
    for _ in range(2):
        answer = api.ask("DELETE", f"/jobs/{job.id}")
        assert (answer.status_code, answer.get_json()["state"]) == (200, "cancelled")
    assert api.services.jobs.take("a.worker") is None


def test_a_job_that_has_ended_is_not_cancelled(api: Api) -> None:
    taken = api.services.jobs.take("a.worker", id=api.job().id)
    assert taken is not None
    api.services.jobs.done(taken, "a" * 64)
    code, message = api.error("DELETE", f"/jobs/{taken.id}", 409)
    assert (code, message) == ("JOB_ENDED", f"job {taken.id} has ended: it is done")


def test_what_was_asked_for_at_once_is_cancelled_at_once(api: Api) -> None:
    body = {"repositories": "*", "verbs": ["squash"]}
    jobs = api.ask("POST", "/jobs", json=body).get_json()["jobs"]
    other = api.job()
    assert api.services.jobs.take("a.worker", id=jobs[0]["id"]) is not None
    group = jobs[0]["group"]
    assert api.ask("DELETE", f"/jobs?group={group}").get_json() == {"cancelled": 4}
    assert api.ask("DELETE", f"/jobs?group={group}").get_json() == {"cancelled": 0}
    assert [job["id"] for job in api.get("/jobs?state=queued")["jobs"]] == [other.id]
    assert set(unended(api.services, [*api.services.jobs.list()])) == {other.id}


def test_not_all_jobs_are_cancelled_for_want_of_a_parameter(api: Api) -> None:
    job = api.job()
    assert api.error("DELETE", "/jobs", 400) == ("QUERY_INVALID", "group is missing; it says which jobs to cancel")
    assert api.services.jobs.find(job.id) == job


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_job_that_there_is_not_is_a_404(api: Api, method: str) -> None:
    assert api.error(method, "/jobs/1", 404) == ("JOB_UNKNOWN", "there is no job 1")


def test_a_job_that_was_waiting_is_found_in_the_same_state(api: Api) -> None:
    job = api.job()
    assert unended(api.services, [job]) == {job.id: job}
    assert api.services.jobs.find(job.id) == job
    assert job.state is JobState.QUEUED


# --- Derived images ---------------------------------------------------------------------------------------------------


def test_derived_images_come_page_by_page(api: Api) -> None:
    for at in range(5):
        api.complete(f"{at}" * 64)
    first = api.ask("GET", "/derived?limit=3")
    url = first.headers["Link"].partition(">")[0].removeprefix("<")
    second = api.ask("GET", url)
    assert "Link" not in second.headers
    keys = [each["key"] for answer in (first, second) for each in answer.get_json()["derived"]]
    assert keys == [f"{at}" * 64 for at in range(5)]


def test_a_derived_image_is_shown_with_all_that_is_known(api: Api) -> None:
    making, complete, failed = "a" * 64, "b" * 64, "c" * 64
    api.derived(making)
    api.complete(complete, b"some content")
    api.services.derived.fail(api.derived(failed), "BLOB_UNKNOWN: it is not there")
    shown = api.get(f"/derived/{complete}")
    expected = {"state": "complete", "live": False, "size": 12, "sha256": "1" * 64, "asked_by": "somebody"}
    assert expected.items() <= shown.items()
    assert (api.get(f"/derived/{making}")["state"], api.get(f"/derived/{making}")["live"]) == ("generating", True)
    assert api.get(f"/derived/{failed}")["reason"] == "BLOB_UNKNOWN: it is not there"
    for state, key in (("generating", making), ("complete", complete), ("failed", failed)):
        assert [each["key"] for each in api.get(f"/derived?state={state}")["derived"]] == [key]
    assert api.get("/derived?namespace=nobody") == {"derived": []}
    assert len(api.get("/derived?namespace=acme&repository=app&verb=squash")["derived"]) == 3


def test_a_derived_image_is_deleted_with_its_object(api: Api) -> None:
    lease = api.complete("a" * 64)
    storage = api.services.storage.preferred
    assert storage.size(lease.path) == 7
    assert api.ask("DELETE", f"/derived/{lease.key}").status_code == 204
    assert api.place.derived() == []
    assert api.error("GET", f"/derived/{lease.key}", 404)[0] == "DERIVED_UNKNOWN"
    assert api.error("DELETE", f"/derived/{lease.key}", 404)[0] == "DERIVED_UNKNOWN"


def test_a_making_loses_its_lease_when_it_is_deleted(api: Api) -> None:
    lease = api.derived("a" * 64)
    assert api.ask("DELETE", f"/derived/{lease.key}").status_code == 204
    assert api.services.derived.beat({lease.token: 1}) == set()


def test_an_object_that_cannot_be_deleted_is_left_to_the_collection(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StorageUnavailable("it is away")

    lease = api.complete("a" * 64)
    monkeypatch.setattr(type(api.services.storage.preferred), "delete", fail)
    assert api.ask("DELETE", f"/derived/{lease.key}").status_code == 204
    assert api.services.derived.find(lease.key) is None
    assert f"{lease.path} stays in storage" in caplog.text


# --- On a host --------------------------------------------------------------------------------------------------------


def test_a_host_has_the_api_only_where_it_wants_it(api: Api) -> None:
    host = Flask("host")
    host.config.update(api.place.configuration)
    RegistryVerbs(host)
    assert host.test_client().get("/api/v1/openapi.json").status_code == 404
    other = Flask("other")
    other.config.update(api.place.configuration)
    RegistryVerbs(other, admin_prefix="/verbs/admin")
    document = other.test_client().get("/verbs/admin/openapi.json").get_json()
    assert document["servers"] == [{"url": "/verbs/admin"}]
    answer = other.test_client().get("/verbs/admin/jobs", headers={"Authorization": f"Bearer {api.token}"})
    assert (answer.status_code, json.loads(answer.data)) == (200, {"jobs": []})


def test_other_methods_and_paths_are_answered_in_json(api: Api) -> None:
    client = api.app.test_client()
    for answer, status in ((client.put("/api/v1/jobs"), 405), (client.get("/api/v1/nothing"), 404)):
        assert answer.status_code == status
        schema(api.document, "#/components/schemas/Errors").validate(answer.get_json())
