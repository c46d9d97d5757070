"""What Docker and podman call an image that they load: `host/namespace/repository:tag`, as they would pull it.

The law: a name that they would refuse is refused here, and nothing in it is changed to please them.
"""

import re

from formats.formatter import SourceImage
from util.problem import Inexpressible

# github.com/distribution/reference, "Grammar".
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LONGEST_NAME = 255


class NoDockerReference(Inexpressible):
    """An image that an archive cannot name, because its host, path or tag is not what Docker allows."""

    code = "DOCKER_REFERENCE_INEXPRESSIBLE"


def docker_name(image: SourceImage) -> str:
    """Return `host/namespace/repository`. Raises NoDockerReference."""
    if not _HOST.fullmatch(image.host):
        raise NoDockerReference(f"the host {image.host!r} cannot stand in the name of a Docker image")
    if not _PATH.fullmatch(image.path):
        raise NoDockerReference(
            f"{image.path!r} cannot be the name of a Docker image: it takes lower-case letters and digits, "
            "with separators between them"
        )
    name = f"{image.host}/{image.path}"
    if len(name) > _LONGEST_NAME:
        raise NoDockerReference(f"{name!r} is too long for the name of a Docker image (at most {_LONGEST_NAME} bytes)")
    return name


def docker_tag(image: SourceImage, *, suffix: str = "") -> str:
    """Return the image's tag with `suffix`, or one that tells the digest it was asked for by.

    Raises NoDockerReference.
    """
    algorithm, _, hexadecimal = image.tag.rpartition(":")
    # A digest is no tag; and one of SHA-512 is longer than any tag.
    tag = (f"{algorithm}-{hexadecimal[:64]}" if algorithm else image.tag) + suffix
    if not _TAG.fullmatch(tag):
        raise NoDockerReference(f"{tag!r} cannot be a tag in Docker; ask for the image by its digest")
    return tag
