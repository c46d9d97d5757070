"""What stands around a root file system: the formats, found by entry points. Knows no web, no database, no storage."""

from formats.installed import DuplicateVerb, installed_formatters

__all__ = ["DuplicateVerb", "installed_formatters"]
