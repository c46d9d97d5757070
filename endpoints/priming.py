"""What is asked for ahead becomes jobs: what an administrator names, and what the rules say of tags that come.

The law: a job is asked for with the manifest that its tag means now, so a tag that moves is another job and the same
tag twice is one. New tags are looked at in the order in which they came and a mark keeps how far; whoever looks, on
whatever host, and however often, the same jobs come out.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from data.jobs import Job, NewJob
from data.marks import Marks
from data.registry import Registry, TagEvent
from data.tables import now_ms
from endpoints.derive import VerbNotFound
from endpoints.rules import Forms, ImageName, InvalidRequest, Rule, Selection
from endpoints.services import Services
from endpoints.settings import InvalidSetting
from util.problem import Missing, Problem, TooLarge

log = logging.getLogger(__name__)

Tell = Callable[[Sequence[Job]], None]
"""Tells workers that there are jobs. It never fails: they look by themselves too, only later."""

MOST = 10_000
"""Jobs that one request may be."""

_PAGE = 1000
_TAGS = "tags"
_SETTLED_MS = 2000  # an id is given before its row is there to be seen: by then every lower one has come, or never will
_AHEAD_MS = 60_000  # a clock that is further ahead than this is not waited for


class NothingMatches(Missing):
    """Globs that no tag matches."""

    code = "NOTHING_MATCHES"


class TooManyJobs(TooLarge):
    """A request that would be more jobs than one may be."""

    code = "TOO_MANY_JOBS"


class ReadOnlyRegistry(Problem):
    """A registry that is read-only: nothing is kept, so nothing can be made ahead."""

    code = "REGISTRY_READONLY"


def check_writable(services: Services) -> None:
    """Raise ReadOnlyRegistry where nothing may be kept."""
    if services.settings.readonly:
        raise ReadOnlyRegistry("the registry is read-only (REGISTRY_STATE): nothing is made ahead, and nothing deleted")


def check_forms(forms: Forms, verbs: Iterable[str]) -> None:
    """Raise InvalidRequest unless every verb of `forms` is installed."""
    for verb in forms.verbs:
        if verb not in verbs:
            raise InvalidRequest(f"verbs: {VerbNotFound(verb, verbs)}")


def check_rules(rules: Sequence[Rule], verbs: Iterable[str]) -> None:
    """Raise InvalidSetting unless every verb of the rules is installed."""
    for number, rule in enumerate(rules):
        try:
            check_forms(rule.forms, verbs)
        except InvalidRequest as problem:
            raise InvalidSetting(f"VERBS_PRIME[{number}]: {problem}") from None


class Priming:
    """Asks for derived images ahead."""

    def __init__(self, services: Services, tell: Tell) -> None:
        self._services, self._tell = services, tell

    def ask(self, what: Sequence[ImageName | Selection], forms: Forms, *, asked_by: str | None) -> list[Job]:
        """Queue a job for each form of each image, and return them; where the same waits or is under way, that one.

        Raises ReadOnlyRegistry, InvalidRequest for a verb that is not there, TooManyJobs, NothingMatches, and what
        Registry.manifest raises for images that are named.
        """
        check_writable(self._services)
        check_forms(forms, self._services.formatters)
        wanted = list(islice(self._wanted(what, forms), MOST + 1))
        if len(wanted) > MOST:
            raise TooManyJobs(f"these are more than {MOST} derived images; ask for fewer at once")
        if not wanted:
            raise NothingMatches(f"no tag matches {' or '.join(map(str, what))}")
        jobs = self._services.jobs.add(wanted, asked_by=asked_by)
        self._tell(jobs)
        return jobs

    def _wanted(self, what: Sequence[ImageName | Selection], forms: Forms) -> Iterator[NewJob]:
        registry = self._services.registry
        for each in what:
            if isinstance(each, ImageName):
                digest = str(registry.manifest(each.namespace, each.repository, each.reference).digest)
                yield from _jobs(each.namespace, each.repository, each.reference, digest, forms)
            else:
                for namespace, repository in _repositories(registry, each):
                    for tag, digest in registry.tag_digests(namespace, repository).items():
                        if each.has_tag(tag):
                            yield from _jobs(namespace, repository, tag, digest, forms)


def _repositories(registry: Registry, selection: Selection) -> Iterator[tuple[str, str]]:
    after = 0
    while page := registry.repositories(namespace=selection.namespace, after=after, limit=_PAGE):
        for each in page:
            if selection.has_repository(each.namespace, each.repository):
                yield each.namespace, each.repository
        after = page[-1].id


def _jobs(namespace: str, repository: str, reference: str, digest: str, forms: Forms) -> Iterator[NewJob]:
    for verb, platform in forms:
        yield NewJob(
            verb=verb,
            namespace=namespace,
            repository=repository,
            reference=reference,
            manifest_digest=digest,
            platform=platform,
            compression=forms.compression,
        )


class Watch:
    """Looks for tags that appeared or moved, and asks for what the rules make of them."""

    def __init__(self, services: Services, tell: Tell, *, clock: Callable[[], int] = now_ms) -> None:
        self._rules, self._registry, self._jobs = services.settings.prime, services.registry, services.jobs
        self._marks = Marks(services.own_engine)
        self._tell, self._clock = tell, clock

    def look(self) -> int:
        """Ask for what the tags need that have come since the last look; return how many jobs that is.

        The first look of all only sets the mark: what was there before is asked for by `prime`. Raises
        DatabaseUnavailable and RegistryUnavailable; the next look begins where this one stopped.
        """
        position = self._marks.find(_TAGS)
        if position is None:
            self._marks.advance(_TAGS, self._registry.last_tag_event())
            return 0
        count = 0
        while events := self._settled(self._registry.tag_events(after=position, limit=_PAGE)):
            wanted = [job for event in events for job in self._wanted(event)]
            if wanted:
                self._tell(self._jobs.add(wanted, asked_by="VERBS_PRIME"))
                count += len(wanted)
            position = events[-1].id
            self._marks.advance(_TAGS, position)
        return count

    def _settled(self, events: Sequence[TagEvent]) -> Sequence[TagEvent]:
        """Return those before the first that is so young that a lower id may still come."""
        now = self._clock()
        for at, event in enumerate(events):
            if now - _SETTLED_MS < event.at_ms < now + _AHEAD_MS:
                return events[:at]
        return events

    def _wanted(self, event: TagEvent) -> Iterator[NewJob]:
        for rule in self._rules:
            if rule.selection.has_tag(event.tag) and rule.selection.has_repository(event.namespace, event.repository):
                yield from _jobs(event.namespace, event.repository, event.tag, event.manifest_digest, rule.forms)
