"""The other package's own test, as its author would write it. Not run from here: test_format_plugin.py installs it."""

from typing import ClassVar

from floppy_verb import Floppy  # type: ignore[import-not-found,unused-ignore]

from formats.testing import FormatterTests, source_image


class TestFloppy(FormatterTests):
    formatter: ClassVar = Floppy()
    refused: ClassVar = [source_image(repository="a-very-long-name")]
