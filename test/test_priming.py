"""What is asked for ahead: by name, by globs, and by rules as tags appear and move."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data.jobs import Job, JobState
from data.marks import Marks
from data.registry import RepositoryNotFound, TagNotFound
from data.tables import now_ms
from endpoints import priming
from endpoints.background import regularly, watch
from endpoints.priming import NothingMatches, Priming, ReadOnlyRegistry, TooManyJobs, Watch
from endpoints.rules import Forms, ImageName, InvalidRequest, Selection
from endpoints.services import Services
from endpoints.settings import InvalidSetting
from test.images import Image, Layer
from test.layers import file
from test.place import Place
from test.waiting import eventually

SQUASH = Forms(("squash",))


def image(content: str) -> Image:
    return Image([Layer([file(b"etc/hostname", content.encode())])])


class Told(list[Job]):
    """What workers have been told of."""

    def __call__(self, jobs: Sequence[Job]) -> None:
        self.extend(jobs)


def names(jobs: Sequence[Job]) -> list[str]:
    return [f"{job.verb} {job.namespace}/{job.repository}:{job.reference}" for job in jobs]


def queued(services: Services) -> list[str]:
    return sorted(names(services.jobs.list(state=JobState.QUEUED)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    for name in ("acme/app:v1", "acme/app:v2", "acme/app:edge", "acme/deep/tool:v1", "other/app:v1"):
        place.push(name, image(name))
    return place


def ask(place: Place, *what: str | Selection, forms: Forms = SQUASH, told: Told | None = None) -> list[Job]:
    wanted = [ImageName.parse(each) if isinstance(each, str) else each for each in what]
    return Priming(place.services(), Told() if told is None else told).ask(wanted, forms, asked_by="test")


# --- By name and by globs ---------------------------------------------------------------------------------------------


def test_images_are_asked_for_by_name_with_what_they_mean_now(place: Place) -> None:
    digest = place.push("acme/app:v3", image("three"))
    told = Told()
    by_tag, by_digest = ask(place, "acme/app:v3", f"acme/app@{digest}", told=told)
    assert (by_tag.reference, by_tag.manifest_digest, by_tag.asked_by) == ("v3", digest, "test")
    assert (by_digest.reference, by_digest.manifest_digest) == (digest, digest)
    assert told == [by_tag, by_digest]
    assert by_tag.group_id == by_digest.group_id


def test_each_verb_is_made_for_each_platform(place: Place) -> None:
    forms = Forms(("squash", "aci"), ("linux/amd64", "linux/arm64"), "zstd")
    jobs = ask(place, "acme/app:v1", forms=forms)
    assert [(job.verb, job.platform, job.compression) for job in jobs] == [
        ("squash", "linux/amd64", "zstd"),
        ("squash", "linux/arm64", "zstd"),
        ("aci", "linux/amd64", "zstd"),
        ("aci", "linux/arm64", "zstd"),
    ]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection("acme/*", "v*"), ["acme/app:v1", "acme/app:v2", "acme/deep/tool:v1"]),
        (Selection("acme/app"), ["acme/app:edge", "acme/app:v1", "acme/app:v2"]),
        (Selection("*/app", "v1"), ["acme/app:v1", "other/app:v1"]),
        (Selection("*", "edge"), ["acme/app:edge"]),
    ],
)
def test_globs_choose_repositories_and_tags(
    place: Place, monkeypatch: pytest.MonkeyPatch, selection: Selection, expected: list[str]
) -> None:
    monkeypatch.setattr(priming, "_PAGE", 1)
    assert sorted(names(ask(place, selection))) == [f"squash {name}" for name in expected]


def test_what_no_tag_matches_is_told(place: Place) -> None:
    with pytest.raises(NothingMatches, match=r"no tag matches ACME/\*:\*"):
        ask(place, Selection("ACME/*"))
    with pytest.raises(NothingMatches, match="no tag matches nobody/x:v1"):
        ask(place, Selection("nobody/x", "v1"))


def test_an_image_that_is_not_there_is_told(place: Place) -> None:
    with pytest.raises(TagNotFound):
        ask(place, "acme/app:v9")
    with pytest.raises(RepositoryNotFound):
        ask(place, "acme/absent:v1")


def test_a_verb_that_is_not_installed_is_told_with_those_that_are(place: Place) -> None:
    with pytest.raises(InvalidRequest, match="verbs: there is no verb 'floppy'; there are: aci, bundle, "):
        ask(place, "acme/app:v1", forms=Forms(("squash", "floppy")))


def test_too_much_at_once_is_refused_and_nothing_queued(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priming, "MOST", 4)
    with pytest.raises(TooManyJobs, match="more than 4"):
        ask(place, Selection("*"))
    assert queued(place.services()) == []
    assert len(ask(place, Selection("acme/*"))) == 4


def test_a_registry_that_is_read_only_is_not_asked(place: Place) -> None:
    with pytest.raises(ReadOnlyRegistry, match="REGISTRY_STATE"):
        ask(Place(place.folder, {"REGISTRY_STATE": "readonly"}), "acme/app:v1")


def test_the_same_twice_is_one_job_until_the_tag_moves(place: Place) -> None:
    (first,) = ask(place, "acme/app:v1")
    (again,) = ask(place, "acme/app:v1")
    place.push("acme/app:v1", image("moved"))
    (moved,) = ask(place, "acme/app:v1")
    assert again.id == first.id
    assert moved.id != first.id


# --- By rules ---------------------------------------------------------------------------------------------------------

RULES = [
    {"repositories": "acme/*", "tags": "v*", "verbs": ["squash", "rootfs"]},
    {"repositories": "*/app", "tags": "*", "verbs": ["squash"]},
]


class Clock:
    """The time that a test lets pass."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead


@pytest.fixture
def ruled(place: Place) -> Place:
    return Place(place.folder, {"VERBS_PRIME": RULES})


def look(place: Place, *, ahead: int = 3000) -> list[str]:
    """Look for new tags, as somebody who has just been started, `ahead` ms later; return what is newly queued."""
    services, told, clock = place.services(), Told(), Clock()
    clock.ahead = ahead
    count = Watch(services, told, clock=clock).look()
    assert len(told) <= count
    return sorted(names(told))


def test_what_was_there_before_the_first_look_is_left_alone(ruled: Place) -> None:
    assert look(ruled) == []
    assert look(ruled) == []
    assert queued(ruled.services()) == []


def test_a_tag_that_appears_is_asked_for_as_the_rules_say(ruled: Place) -> None:
    look(ruled)
    digest = ruled.push("acme/app:v3", image("three"))
    assert look(ruled) == ["rootfs acme/app:v3", "squash acme/app:v3"]
    jobs = ruled.services().jobs.list()
    assert {(job.asked_by, job.manifest_digest) for job in jobs} == {("VERBS_PRIME", digest)}


def test_a_tag_that_moves_is_asked_for_again(ruled: Place) -> None:
    look(ruled)
    ruled.push("acme/app:v1", image("moved"))
    assert look(ruled) == ["rootfs acme/app:v1", "squash acme/app:v1"]
    ruled.push("acme/app:v1", image("moved again"))
    assert look(ruled) == ["rootfs acme/app:v1", "squash acme/app:v1"]


def test_a_tag_that_no_glob_matches_is_passed_over(ruled: Place) -> None:
    look(ruled)
    for name in ("acme/tool:edge", "acmes/tool:v1", "other/tool:v1", "acme/tool:V1"):
        ruled.push(name, image(name))
    assert look(ruled) == []
    ruled.push("other/app:anything", image("matches"))
    assert look(ruled) == ["squash other/app:anything"]


def test_a_restart_repeats_nothing_and_misses_nothing(ruled: Place) -> None:
    look(ruled)
    ruled.push("acme/app:v3", image("three"))
    assert len(look(ruled)) == 2
    services = ruled.services()
    for job in services.jobs.list():
        services.jobs.cancel(job.id)
    assert look(ruled) == []
    ruled.push("acme/app:v4", image("pushed while nobody looks"))
    assert look(ruled) == ["rootfs acme/app:v4", "squash acme/app:v4"]


def test_two_who_look_at_once_ask_for_each_once(ruled: Place) -> None:
    look(ruled)
    ruled.push("acme/app:v3", image("three"))
    threads = [threading.Thread(target=look, args=(ruled,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queued(ruled.services()) == ["rootfs acme/app:v3", "squash acme/app:v3"]


def test_a_tag_that_is_very_young_waits_for_lower_ids_that_may_still_come(
    ruled: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(ruled)
    monkeypatch.setattr(priming, "_SETTLED_MS", 600_000)  # it is young as long as this test lasts
    ruled.push("acme/app:v3", image("three"))
    assert look(ruled, ahead=0) == []
    assert look(ruled, ahead=600_000) != []


def test_a_tag_from_a_clock_far_ahead_holds_nothing_up(ruled: Place) -> None:
    look(ruled)
    ruled.push("acme/app:v3", image("three"))
    assert look(ruled, ahead=-3_600_000) != []


def test_many_tags_are_looked_at_page_by_page(ruled: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    look(ruled)
    for at in range(5):
        ruled.push(f"acme/many:v{at}", image("many"))
    monkeypatch.setattr(priming, "_PAGE", 2)
    assert len(look(ruled)) == 10
    services = ruled.services()
    assert Marks(services.own_engine).find("tags") == services.registry.last_tag_event()


def test_a_rule_with_a_verb_that_is_not_installed_is_a_wrong_setting(place: Place) -> None:
    rules = [*RULES, {"repositories": "acme/*", "verbs": ["floppy"]}]
    with pytest.raises(InvalidSetting, match=r"VERBS_PRIME\[2\]: verbs: there is no verb 'floppy'; there are: aci"):
        Place(place.folder, {"VERBS_PRIME": rules}).app()


# --- The thread that looks --------------------------------------------------------------------------------------------


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_new_tags_are_looked_at_again_and_again(place: Place, stopping: threading.Event) -> None:
    ruled = Place(place.folder, {"VERBS_PRIME": RULES, "VERBS_PRIME_SECONDS": 1})
    services = ruled.services()
    (thread,) = watch(services, Told(), stopping)
    eventually(lambda: Marks(services.own_engine).find("tags"))
    ruled.push("other/app:v9", image("nine"))
    eventually(lambda: queued(services) == ["squash other/app:v9"])
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()


def test_without_rules_nobody_looks(place: Place, stopping: threading.Event) -> None:
    assert not watch(place.services(), Told(), stopping)


def test_a_look_that_fails_is_logged_and_the_next_one_comes(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("the registry is away")

    regularly(fail, "new tags are not looked at")
    assert "new tags are not looked at" in caplog.text
    assert "the registry is away" in caplog.text
