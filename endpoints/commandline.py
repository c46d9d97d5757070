"""What the commands share: names of images, failures as one line, services with the operator's own access.

The law: heavy modules are imported by the function that needs them, as in the commands themselves. Whatever a command
shows goes through `echo`, so that no byte of a stranger's reaches a terminal but as a picture.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from endpoints.rules import ImageName, InvalidRequest
from util.printable import printable
from util.problem import Problem

if TYPE_CHECKING:
    from endpoints.services import Services
    from util.compression import Compression
    from util.platform import Platform

ReadConfiguration = Callable[[], Mapping[str, Any]]


def echo(line: str, *, file: "IO[str] | None" = None, err: bool = False) -> None:
    """Write one line to stdout, to stderr with `err`, or to `file`, in printable characters."""
    click.echo(printable(line), file=file, err=err)


class Failed(click.ClickException):
    """A problem, as one line."""

    def __init__(self, problem: Problem) -> None:
        from data.directories.directory import DirectoryUnavailable

        said = problem.reason if isinstance(problem, DirectoryUnavailable) else str(problem)  # to the operator alone
        super().__init__(" ".join(said.split()))

    def show(self, file: Any = None) -> None:
        echo(f"registry-verbs: {self.message}", file=file, err=True)


class Misconfigured(Failed):
    """A setting that is wrong: whoever calls must mend it first."""

    exit_code = 2


class Commands(click.Group):
    """A group of commands whose problems become failures."""

    def invoke(self, ctx: click.Context) -> Any:
        import logging

        from endpoints.loglines import OneLine
        from endpoints.settings import InvalidSetting

        if logging.lastResort is not None:  # what shows warnings where nothing else is set up to
            logging.lastResort.setFormatter(OneLine())
        try:
            return super().invoke(ctx)
        except click.ClickException as refusal:
            # It quotes arguments, which a script may have from anywhere.
            object.__setattr__(refusal, "message", printable(refusal.message))
            raise
        except Problem as problem:
            raise (Misconfigured if isinstance(problem, InvalidSetting) else Failed)(problem) from problem


def examples(*lines: str) -> str:
    """Return help that shows `lines` as they are: a backspace keeps click from filling the paragraph."""
    return "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines)


def image_name(_: click.Context, __: click.Parameter, value: str) -> ImageName:
    try:
        return ImageName.parse(value)
    except InvalidRequest as problem:
        raise click.BadParameter(str(problem)) from None


def platform_of(_: click.Context, __: click.Parameter, value: str | None) -> "Platform | None":
    from util.platform import InvalidPlatform, Platform

    try:
        return None if value is None else Platform.parse(value)
    except InvalidPlatform as problem:
        raise click.BadParameter(str(problem)) from None


def compression_of(_: click.Context, __: click.Parameter, value: str | None) -> "Compression | None":
    from util.compression import Compression

    return None if value is None else Compression(value)


def options_of(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE")
        if name in options:
            raise click.BadParameter(f"{name} is given more than once")
        options[name] = value
    return options


def terminated(number: int, _: object) -> NoReturn:
    """Leave as if by an exception, so that nothing half-written stays."""
    sys.exit(128 + number)


def services_of(read: ReadConfiguration) -> "Services":
    """Return services with the operator's own access: whoever can read database and storage may read all of it."""
    from endpoints.services import operators_services

    return operators_services(read())
