"""What is asked for ahead: images by name, or repositories and tags by globs; times verbs, times platforms.

The law: this module is pure. A glob is matched case by case against the whole of `NAMESPACE/REPOSITORY`, or of a tag;
`*` stands for anything, slashes too. A document that cannot be used is an error that names the field and what is
allowed; a field of another name is an error too, because it is a misspelling.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from typing import Any

from util.problem import Problem

_COMPRESSIONS = ("none", "gzip", "zstd")
_IMAGE = re.compile(
    r"(?P<namespace>[^/:@\s]+)/(?P<repository>[^:@\s]*[^/:@\s])"
    r"(?::(?P<tag>[^:@/\s]+)|@(?P<digest>[a-z0-9+._-]+:[0-9a-f]+))?"
)
_MAX_NAME = 255
_MAGIC = re.compile(r"[*?\[]")


class InvalidRequest(Problem):
    """A document that does not say in a usable way what is asked for; the text names the field."""

    code = "REQUEST_INVALID"


@dataclass(frozen=True, slots=True)
class ImageName:
    """`NAMESPACE/REPOSITORY:TAG` or `NAMESPACE/REPOSITORY@DIGEST`; the tag is `latest` where neither is said."""

    namespace: str
    repository: str
    reference: str

    @classmethod
    def parse(cls, text: str) -> "ImageName":
        """Return the image that `text` names. Raises InvalidRequest."""
        match = _IMAGE.fullmatch(text)
        if match is None or len(text) > _MAX_NAME:
            raise InvalidRequest(f"{text!r} is not the name of an image; write NAMESPACE/REPOSITORY:TAG")
        return cls(match["namespace"], match["repository"], match["tag"] or match["digest"] or "latest")

    def __str__(self) -> str:
        return f"{self.namespace}/{self.repository}{'@' if ':' in self.reference else ':'}{self.reference}"


@dataclass(frozen=True, slots=True)
class Forms:
    """What is to be made of each image: every verb for every platform. No platform means the default one."""

    verbs: tuple[str, ...]
    platforms: tuple[str | None, ...] = (None,)
    compression: str | None = None

    FIELDS = ("verbs", "platforms", "compression")

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "Forms":
        """Return what the three fields of `document` say, passing over others. Raises InvalidRequest."""
        from util.platform import InvalidPlatform, Platform

        verbs = texts(document, "verbs", 'a list of verbs, e.g. ["squash"]')
        if not verbs:
            raise InvalidRequest('verbs is missing; allowed: a list of verbs, e.g. ["squash"]')
        try:
            platforms = tuple(
                str(Platform.parse(each))
                for each in texts(document, "platforms", 'a list of platforms, e.g. ["linux/arm64"]')
            )
        except InvalidPlatform as problem:
            raise InvalidRequest(f"platforms: {problem}") from None
        compression = document.get("compression")
        if compression is not None and compression not in _COMPRESSIONS:
            raise InvalidRequest(f"compression is {compression!r}; allowed: {', '.join(_COMPRESSIONS)}")
        return cls(verbs, platforms or (None,), compression)

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        return ((verb, platform) for verb in self.verbs for platform in self.platforms)

    def __len__(self) -> int:
        return len(self.verbs) * len(self.platforms)


@dataclass(frozen=True)
class Selection:
    """Images by globs: those tags of those repositories."""

    repositories: str
    tags: str = "*"

    FIELDS = ("repositories", "tags")

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "Selection":
        """Return what the two fields of `document` say, passing over others. Raises InvalidRequest."""
        repositories = document.get("repositories")
        if not isinstance(repositories, str) or not re.search(r"\*|[^/]/[^/]", repositories):
            raise InvalidRequest(
                f"repositories is {repositories!r}; allowed: a glob of NAMESPACE/REPOSITORY, e.g. acme/*"
            )
        tags = document.get("tags", "*")
        if not isinstance(tags, str) or not tags:
            raise InvalidRequest(f"tags is {tags!r}; allowed: a glob of tags, e.g. v*")
        return cls(repositories, tags)

    @property
    def namespace(self) -> str | None:
        """The one namespace that can match, None where the glob may mean several."""
        namespace = self.repositories.partition("/")[0]
        return None if _MAGIC.search(namespace) else namespace

    @property
    def repository(self) -> tuple[str, str] | None:
        """The one repository that can match, by namespace and name; None where the glob may mean several."""
        namespace, slash, repository = self.repositories.partition("/")
        return (namespace, repository) if slash and not _MAGIC.search(self.repositories) else None

    def has_repository(self, namespace: str, repository: str) -> bool:
        return self._repositories.match(f"{namespace}/{repository}") is not None

    def has_tag(self, tag: str) -> bool:
        return self._tags.match(tag) is not None

    @cached_property
    def _repositories(self) -> re.Pattern[str]:
        return re.compile(translate(self.repositories))

    @cached_property
    def _tags(self) -> re.Pattern[str]:
        return re.compile(translate(self.tags))

    def __str__(self) -> str:
        return f"{self.repositories}:{self.tags}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is made of a tag as soon as it appears or moves."""

    selection: Selection
    forms: Forms

    @classmethod
    def parse(cls, document: object) -> "Rule":
        """Return the rule that `document` is. Raises InvalidRequest."""
        fields = fields_of(document, (*Selection.FIELDS, *Forms.FIELDS))
        return cls(Selection.parse(fields), Forms.parse(fields))


def fields_of(document: object, allowed: Sequence[str]) -> Mapping[str, Any]:
    """Return `document` if it has fields, and none but those `allowed`. Raises InvalidRequest."""
    if not isinstance(document, Mapping):
        raise InvalidRequest(f"this is no object with fields; allowed: {', '.join(allowed)}")
    for name in document:
        if name not in allowed:
            raise InvalidRequest(f"{name!r} is not a field; allowed: {', '.join(allowed)}")
    return document


def texts(document: Mapping[str, Any], field: str, allowed: str) -> tuple[str, ...]:
    """Return the texts of a field that is a list of them, each once; none where it is absent. Raises InvalidRequest."""
    value = document.get(field)
    if value is None:
        return ()
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(each, str) and each for each in value)
    ):
        raise InvalidRequest(f"{field} is {value!r}; allowed: {allowed}")
    return tuple(dict.fromkeys(value))
