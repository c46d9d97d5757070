"""A client of App Container discovery, written from its specification (appc/spec, spec/discovery.md) and nothing else.

It knows no URL of ours: from a name and labels it finds image, signature and keys, and believes nothing unverified.
"""

import http.client
import io
import json
import tarfile
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

from test.gnupg import verified


class NotDiscovered(Exception):
    """What the specification has a client fail with."""


@dataclass(frozen=True)
class Found:
    """An image that is what it was asked for, and is signed by the key with the fingerprint."""

    manifest: Mapping[str, Any]
    content: bytes
    fingerprint: str
    asked: tuple[str, ...]
    """Every URL that was asked, in that order."""


class _Metas(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.metas: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name, content = values.get("name") or "", (values.get("content") or "").split()
        if tag == "meta" and name.startswith("ac-discovery") and len(content) == 2:
            self.metas.append((name, content[0], content[1]))


@dataclass
class Client:
    """Discovers over HTTPS, and over HTTP where that is `insecure`; `connect` says where a host really is."""

    connect: Mapping[str, str]
    insecure: bool = True
    login: tuple[str, str] | None = None
    patience: float = 120
    asked: list[str] = field(default_factory=list)

    def fetch(self, name: str, **labels: str) -> Found:
        """Return the image `name` with all `labels`. Raises NotDiscovered."""
        self.asked.clear()
        metas = self._metas(name)
        template = self._best([url for kind, url in metas if kind == "ac-discovery"], {"name": name, **labels})
        keys = [self._get(url) for kind, url in metas if kind == "ac-discovery-pubkeys"]
        signature = self._maybe(template.replace("{ext}", "aci.asc"))
        content = self._get(template.replace("{ext}", "aci"))
        end = time.monotonic() + self.patience
        while signature is None and time.monotonic() < end:  # it was deferred until the image was there
            time.sleep(0.1)
            signature = self._maybe(template.replace("{ext}", "aci.asc"))
        if signature is None or not keys:
            raise NotDiscovered("no signature, or no key")
        fingerprint = verified(content, signature, b"".join(keys))
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            file = tar.extractfile("manifest")
            assert file is not None
            manifest = json.loads(file.read())
        there = {label["name"]: label["value"] for label in manifest["labels"]}
        if manifest["name"] != name or any(there.get(label) != value for label, value in labels.items()):
            raise NotDiscovered(f"asked for {name} {labels}, and got {manifest['name']} {there}")
        return Found(manifest, content, fingerprint, tuple(self.asked))

    def _metas(self, name: str) -> list[tuple[str, str]]:
        """Return kind and URL of what the pages of the name, or of the nearest parent that has some, say of it."""
        path = name
        while True:
            for scheme in ("https", "http") if self.insecure else ("https",):
                try:
                    page = self._get(f"{scheme}://{path}?ac-discovery=1")
                except (NotDiscovered, OSError):
                    continue
                parser = _Metas()
                parser.feed(page.decode())
                found = [(kind, url) for kind, prefix, url in parser.metas if name.startswith(prefix)]
                if any(kind == "ac-discovery" for kind, _ in found):
                    return found
            path, slash, _ = path.rpartition("/")
            if not slash:
                raise NotDiscovered(f"no page tells of {name}")

    @staticmethod
    def _best(templates: list[str], values: Mapping[str, str]) -> str:
        """Return the template in which all can be substituted, and the most is; of two the first."""
        rendered = []
        for template in templates:
            assert "{ext}" in template
            there = [name for name in values if f"{{{name}}}" in template]
            text = template
            for name in there:
                text = text.replace(f"{{{name}}}", values[name])
            if "{" not in text.replace("{ext}", ""):
                rendered.append((len(there), text))
        if not rendered:
            raise NotDiscovered(f"no template of {templates} takes {values}")
        return max(rendered, key=lambda each: each[0])[1]

    def _get(self, url: str) -> bytes:
        content = self._maybe(url)
        if content is None:
            raise NotDiscovered(f"{url} is deferred")
        return content

    def _maybe(self, url: str) -> bytes | None:
        """Return what is at `url`, None where it is to come. Raises NotDiscovered where it is an error."""
        for status, body in self._answers(url):
            if status == 200:
                return body
            if status == 202:
                return None
            raise NotDiscovered(f"{url} is answered with {status}")
        raise NotDiscovered(f"{url} is sent elsewhere for ever")

    def _answers(self, url: str) -> Iterator[tuple[int, bytes]]:
        """Yield the answer, after going where one sends us, and with our login where we are asked for it."""
        headers: dict[str, str] = {}
        for _ in range(10):
            self.asked.append(url)
            parts = urlsplit(url)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(self.connect[parts.hostname or ""], timeout=300)
            try:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", target or "/", headers={"Host": parts.netloc, **headers})
                answer = connection.getresponse()
                body = answer.read()
            finally:
                connection.close()
            if answer.status in (301, 302, 303, 307, 308):
                url = urljoin(url, answer.headers["Location"])
            elif answer.status == 401 and self.login and not headers:
                headers = {"Authorization": "Basic " + b64encode(":".join(self.login).encode()).decode()}
            else:
                yield answer.status, body
                return
