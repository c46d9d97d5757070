"""A place to derive images in, for tests: a folder with an SQLite database and a storage, filled by the importer."""

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask

from app import create_app
from data.database import Engine, make_engine
from data.importer import import_image
from endpoints.access import everything
from endpoints.derive import Deriver
from endpoints.services import Services, make_services
from endpoints.settings import Settings
from test.images import Image, Layer, Layout


@dataclass(frozen=True)
class Place:
    """Everything lies under `folder`; `more` are further settings."""

    folder: Path
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def configuration(self) -> dict[str, Any]:
        return {"VERBS_DATA_DIR": str(self.folder / "var"), "SERVER_HOSTNAME": "registry.example.com", **self.more}

    def app(self) -> Flask:
        return create_app(self.configuration)

    def services(self) -> Services:
        return make_services(Settings.parse(self.configuration), permission=everything)

    def deriver(self) -> Deriver:
        return Deriver(self.services())

    @property
    def engine(self) -> Engine:
        return make_engine(Settings.parse(self.configuration).db_uri)

    def push(self, name: str, *images: Image, private: bool = False) -> str:
        """Import one image, or an image index of several, under `name`; return the manifest's digest."""
        layout = Layout(Path(tempfile.mkdtemp(dir=self.folder)))
        descriptor = layout.image(images[0]) if len(images) == 1 else layout.index(*images)
        return self._import(layout, descriptor, name, private=private)

    def push_artifact(self, name: str) -> str:
        layout = Layout(Path(tempfile.mkdtemp(dir=self.folder)))
        return self._import(layout, layout.artifact(), name, private=False)

    def _import(self, layout: Layout, descriptor: Mapping[str, Any], name: str, *, private: bool) -> str:
        path, tag = name.rsplit(":", 1)
        namespace, repository = path.split("/", 1)
        services = self.services()
        source = layout.tag("image", descriptor)
        import_image(
            source,
            namespace,
            repository,
            tag,
            engine=self.engine,
            storage=services.storage,
            indexes=services.indexes,
            private=private,
        )
        return str(descriptor["digest"])

    def sql(self, statement: str) -> None:
        """Change the database behind everybody's back."""
        with closing(sqlite3.connect(self.folder / "var" / "registry.db", timeout=60)) as connection, connection:
            connection.execute(statement)

    @property
    def storage(self) -> Path:
        return self.folder / "var" / "storage"

    def derived(self) -> list[str]:
        """Return the keys of what is kept of derived images."""
        return sorted(path.name for path in self.storage.glob("verbs/derived/*/*"))

    def files(self, *, without_derived: bool = False) -> list[Path]:
        """Return every file in storage, half-written ones too."""
        files = sorted(path for path in self.storage.rglob("*") if path.is_file())
        return [path for path in files if not (without_derived and "derived" in str(path.relative_to(self.storage)))]

    def forget_indexes(self) -> None:
        shutil.rmtree(self.storage / "verbs" / "layerindex")

    def blob(self, layer: Layer) -> Path:
        """Return the file in which `layer` lies as it was pushed."""
        digest = hashlib.sha256(layer.blob).hexdigest()
        return self.storage / "sha256" / digest[:2] / digest
