"""The composition root: reads the configuration, makes the application, runs the command line.

The law: this is the only module that reads the environment, and importing it costs nothing: an application is made when
`create_app` is called, or when a server asks for `app:app`.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from util.problem import Problem

if TYPE_CHECKING:
    from flask import Flask

    from endpoints.configuration import Configuration

CONFIG_FILE = "VERBS_CONFIG"
"""The environment's name for the path of a `config.yaml`, Quay's own or ours."""


class ConfigurationUnreadable(Problem):
    """A configuration file that is not there, or is not YAML with keys and values."""

    code = "CONFIGURATION_UNREADABLE"


def read_configuration(environ: Mapping[str, str] | None = None) -> "Configuration":
    """Return the configuration file's keys with the environment's over them. Raises ConfigurationUnreadable.

    An empty variable is one that is not set. Files that Quay keeps beside its configuration file lie beside ours.
    """
    from endpoints.configuration import Configuration
    from endpoints.settings import Settings

    environ = os.environ if environ is None else environ
    path = environ.get(CONFIG_FILE)
    configuration = Configuration(_read_file(path) if path else {})
    configuration.source = path or None
    ours = {key for key in environ if key.startswith("VERBS_") and key != CONFIG_FILE}
    configuration.environment = frozenset(key for key in ours.union(Settings.KEYS) if environ.get(key))
    configuration.update({key: environ[key] for key in configuration.environment})
    beside = os.path.dirname(path) if path else ""
    if path:
        configuration.setdefault("VERBS_CONFIG_DIR", beside or ".")
    configuration.update(Settings.beside(beside, configuration))
    return configuration


def _read_file(path: str) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigurationUnreadable(f"{CONFIG_FILE} names {path}, which cannot be read: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigurationUnreadable(f"{CONFIG_FILE} names {path}, which does not consist of keys and values")
    return content


def create_app(configuration: Mapping[str, Any] | None = None) -> "Flask":
    """Return the service as a Flask application; without `configuration` it is read as `read_configuration` does.

    Raises ConfigurationUnreadable and InvalidSetting.
    """
    from endpoints import startup
    from endpoints.service import make_service
    from endpoints.verbs import EXTENSION

    configuration = read_configuration() if configuration is None else configuration
    app = make_service(configuration)
    startup.tell(configuration, app.extensions[EXTENSION])
    return app


def main() -> None:
    """Run the command line: the console script `registry-verbs`."""
    from endpoints.commands import cli

    cli(prog_name="registry-verbs", obj=read_configuration)


def __getattr__(name: str) -> Any:
    if name == "app":
        return create_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
