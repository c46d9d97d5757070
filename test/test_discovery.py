"""Lists page by page, on SQLite and PostgreSQL: tags in order, referrers, and repositories that somebody may read."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import select, update

from data import discovery
from data import tables as db
from data.accounts import Account, SqlAccounts
from data.database import create_tables, writing
from data.discovery import Reader
from data.logins import Logins
from data.registryrows import RegistryRows
from test.databases import KINDS, database
from test.images import CONFIG, MANIFEST
from test.manifests import artifact, described, digest_of, image, index
from test.test_pushedmanifests import Pushed
from util.digest import Digest
from util.oci import INDEX_OCI

MIXED = ["B", "_", "a", "a-b", "a.b", "a_b", "aB", "ab", "b", "1", "10", "2", "Z"]


@pytest.fixture(params=KINDS)
def pushed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pushed]:
    with database(request.param, tmp_path) as engine:
        create_tables(engine)
        found = Pushed(engine)
        found.blob(b"{}", b"one", b"two")
        yield found


# --- Tags -------------------------------------------------------------------------------------------------------------


def test_tags_are_in_the_order_of_ascii(pushed: Pushed) -> None:
    pushed.push(image(b"one"), *MIXED)
    assert pushed.discovery.tags(pushed.app.id) == sorted(MIXED)


@pytest.mark.parametrize("size", [1, 2, 5, 13, 14])
def test_pages_of_tags_together_are_all_of_them(pushed: Pushed, size: int) -> None:
    pushed.push(image(b"one"), *MIXED)
    found: list[str] = []
    while page := pushed.discovery.tags(pushed.app.id, after=found[-1] if found else None, limit=size):
        assert len(page) <= size
        found += page
    assert found == sorted(MIXED)


def test_a_page_begins_behind_a_name_that_no_tag_has(pushed: Pushed) -> None:
    pushed.push(image(b"one"), "a", "c")
    assert pushed.discovery.tags(pushed.app.id, after="b") == ["c"]
    assert pushed.discovery.tags(pushed.app.id, after="c") == []
    assert pushed.discovery.tags(pushed.app.id, limit=0) == []


def test_only_tags_that_are_alive_are_listed_and_each_once(pushed: Pushed) -> None:
    pushed.push(image(b"one"))
    pushed.push(image(b"one"), "moved", "gone")
    pushed.push(image(b"two"), "moved")
    pushed.manifests.delete_tag(pushed.app, "gone")
    assert pushed.discovery.tags(pushed.app.id) == ["moved"]
    assert pushed.discovery.tags(pushed.repository("acme", "other").id) == []


# --- Referrers --------------------------------------------------------------------------------------------------------


def test_referrers_are_described_as_their_documents_say(pushed: Pushed) -> None:
    subject = image(b"one")
    to = described(subject, MANIFEST)
    typed = artifact("application/vnd.example.sbom", b"two", subject=to, annotations={"a": "ä", "b": "c"})
    untyped = image(b"two", subject=to)
    listed = index([subject], subject=to, annotations={"d": "e"})
    typed_index = index([subject], subject=to, artifactType="application/vnd.example.set")
    pushed.push(subject, "1.0")
    for content in (typed, untyped, listed, typed_index):
        pushed.push(content)
    found, more = pushed.discovery.referrers(pushed.app.id, Digest.of(subject))
    assert not more
    assert {each.digest: (each.media_type, each.size, each.artifact_type, each.annotations) for each in found} == {
        digest_of(typed): (MANIFEST, len(typed), "application/vnd.example.sbom", {"a": "ä", "b": "c"}),
        digest_of(untyped): (MANIFEST, len(untyped), CONFIG, {}),
        digest_of(listed): (INDEX_OCI, len(listed), None, {"d": "e"}),
        digest_of(typed_index): (INDEX_OCI, len(typed_index), "application/vnd.example.set", {}),
    }
    assert [each.digest for each in found] == sorted(each.digest for each in found)


def test_referrers_by_their_type(pushed: Pushed) -> None:
    to = described(b"gone", MANIFEST)
    contents = {kind: artifact(kind, subject=to) for kind in ("application/a", "application/b")}
    contents[CONFIG] = image(b"one", subject=to)
    for content in contents.values():
        pushed.push(content)
    for kind, content in contents.items():
        found, _ = pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"), artifact_type=kind)
        assert [each.digest for each in found] == [digest_of(content)]
    assert pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"), artifact_type="other") == ([], False)


def test_an_empty_type_is_none(pushed: Pushed) -> None:
    pushed.push(artifact("", subject=described(b"gone", MANIFEST)))
    ((found,), _) = pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"))
    assert found.artifact_type == "application/vnd.oci.empty.v1+json"


def test_only_referrers_that_are_there(pushed: Pushed) -> None:
    to = described(b"gone", MANIFEST)
    tagged, held, kept, deleted = (artifact(f"application/{at}", subject=to) for at in range(4))
    pushed.push(tagged, "tagged")
    for content in (held, kept, deleted):
        pushed.push(content)
    pushed.push(index([held]), "index")
    with writing(pushed.engine) as connection:  # as if the index alone led to it
        row = select(db.Manifest.id).where(db.Manifest.digest == digest_of(held)).scalar_subquery()
        connection.execute(update(db.Tag).where(db.Tag.manifest_id == row).values(lifetime_end_ms=1))
    pushed.manifests.delete(pushed.app, Digest.of(deleted))
    other = pushed.repository("acme", "other")
    pushed.blob(b"{}", to=other)
    pushed.push(artifact("application/other", subject=to), to=other)

    def listed() -> set[str]:
        return {each.digest for each in pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"))[0]}

    assert listed() == set(map(digest_of, (tagged, held, kept)))
    pushed.manifests.delete_tag(pushed.app, "tagged")
    pushed.manifests.delete_tag(pushed.app, "index")
    assert listed() == {digest_of(kept)}


def test_pages_of_referrers_together_are_all_of_them(pushed: Pushed) -> None:
    to = described(b"gone", MANIFEST)
    contents = [artifact(f"application/{at}", subject=to) for at in range(7)]
    for content in contents:
        pushed.push(content)
    found: list[str] = []
    more = True
    while more:
        after = found[-1] if found else None
        page, more = pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"), after=after, limit=3)
        assert 0 < len(page) <= 3
        found += [each.digest for each in page]
    assert found == sorted(map(digest_of, contents))


def test_a_page_of_referrers_is_no_larger_than_a_manifest(pushed: Pushed, monkeypatch: pytest.MonkeyPatch) -> None:
    to = described(b"gone", MANIFEST)
    contents = [artifact("application/a", subject=to, annotations={"a": str(at) * 500}) for at in range(5)]
    for content in contents:
        pushed.push(content)
    monkeypatch.setattr(discovery, "MAX_DOCUMENT_SIZE", 2 * len(contents[0]))
    page, more = pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"))
    assert (len(page), more) == (2, True)
    monkeypatch.setattr(discovery, "MAX_DOCUMENT_SIZE", 10)
    page, more = pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"))
    assert (len(page), more) == (1, True)


def test_annotations_that_another_service_took_wrong_are_left_out(pushed: Pushed) -> None:
    pushed.push(artifact("application/a", subject=described(b"gone", MANIFEST)))
    with writing(pushed.engine) as connection:
        connection.execute(update(db.Manifest).values(manifest_bytes=json.dumps({"annotations": {"a": 1}})))
    ((found,), _) = pushed.discovery.referrers(pushed.app.id, Digest.of(b"gone"))
    assert found.annotations == {}


# --- Repositories -----------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(pushed: Pushed) -> dict[str, int]:
    """Repositories of two organizations and a user, and accounts by their names."""
    with writing(pushed.engine) as connection:
        rows = RegistryRows(connection)
        people: dict[str, int] = {}
        for name, more in {
            "alice": {},
            "bob": {},
            "carol": {},
            "stranger": {},
            "alice+ci": {"robot": True},
            "corp": {"organization": True},
            "shop": {"organization": True},
            "shut": {"enabled": False},
        }.items():
            people[name] = rows.row(db.User, {"username": name}, **more)
        kind = {"kind_id": rows.named(db.RepositoryKind, "image")}
        numbers: dict[str, int] = {}
        for owner, name, visibility in (
            *product(("corp", "shop", "alice", "shut"), ("private", "other"), ("private",)),
            *product(("corp", "shut"), ("public",), ("public",)),
        ):
            numbers[f"{owner}/{name}"] = rows.row(
                db.Repository,
                {"namespace_user_id": people[owner], "name": name},
                visibility_id=rows.named(db.Visibility, visibility),
                **kind,
            )
        for team, role, member in (
            ("owners", "admin", "bob"),
            ("makers", "creator", "carol"),
            ("dev", "member", "carol"),
        ):
            team_role = rows.row(db.TeamRole, {"name": role})
            number = rows.row(db.Team, {"name": team, "organization_id": people["corp"]}, role_id=team_role)
            rows.row(db.TeamMember, {"team_id": number, "user_id": people[member]})
            if team == "dev":
                granted = {"team_id": number, "repository_id": numbers["corp/private"]}
                rows.row(db.RepositoryPermission, granted, role_id=rows.named(db.Role, "read"))
        granted = {"user_id": people["alice+ci"], "repository_id": numbers["alice/other"]}
        rows.row(db.RepositoryPermission, granted, role_id=rows.named(db.Role, "write"))
    return people


@pytest.mark.parametrize("name", ["alice", "bob", "carol", "stranger", "alice+ci"])
def test_everybody_sees_what_their_role_lets_them_read(pushed: Pushed, crowd: dict[str, int], name: str) -> None:
    accounts = SqlAccounts(pushed.engine, pushed.engine, Logins(pushed.engine), secrets=lambda: None)
    account = Account(crowd[name], name, robot="+" in name, superuser=False)
    everything = pushed.discovery.repositories(Reader(everything=True))
    expected = [each for each in everything if each[2] or accounts.role(account, each[0], each[1]) is not None]
    assert pushed.discovery.repositories(Reader(account.id, robot=account.robot)) == expected


def test_nobody_sees_what_is_public(pushed: Pushed, crowd: dict[str, int]) -> None:
    assert pushed.discovery.repositories(Reader()) == [("acme", "app", True), ("corp", "public", True)]
    assert ("corp", "private", False) in pushed.discovery.repositories(Reader(crowd["carol"]))
    assert ("corp", "other", False) not in pushed.discovery.repositories(Reader(crowd["carol"]))


def test_repositories_are_in_the_order_of_ascii_page_by_page(pushed: Pushed) -> None:
    names = ["acme/app", "acme/a", "acme/a/b", "acme/a-b", "acme-x/a", "acme.y/z", "acme/zz", "ab/c"]
    for name in names:
        pushed.repository(*name.split("/", 1))
    found: list[str] = []
    while page := pushed.discovery.repositories(Reader(), after=found[-1] if found else None, limit=3):
        found += ["/".join(each[:2]) for each in page]
    assert found == sorted(names)


def test_what_is_no_repository_of_images_is_not_listed(pushed: Pushed) -> None:
    chart, going = pushed.repository("acme", "chart").id, pushed.repository("acme", "going").id
    with writing(pushed.engine) as connection:
        kind = select(db.RepositoryKind.id).where(db.RepositoryKind.name == "application").scalar_subquery()
        connection.execute(update(db.Repository).where(db.Repository.id == chart).values(kind_id=kind))
        connection.execute(update(db.Repository).where(db.Repository.id == going).values(state=db.MARKED_FOR_DELETION))
    assert pushed.discovery.repositories(Reader(everything=True)) == [("acme", "app", True)]
