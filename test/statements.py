"""The command line, with every statement that it sends to a database written down, for tests.

PROGRAM does what `registry-verbs` does, and appends each statement to the file that STATEMENTS names in the
environment: a line of JSON with the database's name and the text, from every process.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

import app

PROGRAM = "from test.statements import main; main()"
FILE = "STATEMENTS"


def main() -> None:
    """Run the command line."""
    file = os.environ[FILE]

    @event.listens_for(Engine, "before_cursor_execute")
    def write_down(connection: Any, _: object, statement: str, *__: object) -> None:
        line = json.dumps([connection.engine.url.database, statement]) + "\n"
        with open(file, "a", encoding="utf-8") as log:  # one short write at the end: processes do not mix
            log.write(line)

    app.main()


def sent(file: Path, database: str) -> set[str]:
    """Return the different statements that `database` was sent."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {statement for named, statement in lines if named == database}


def read(tables: Iterable[str], statements: Iterable[str]) -> set[str]:
    """Return those of `tables` that any of `statements` reads from."""
    every = list(statements)
    return {
        table
        for table in tables
        for pattern in [re.compile(rf'(?:\bFROM|\bJOIN|,)\s+\(?"?{table}"?(?:[\s,)]|$)')]
        if any(pattern.search(statement) for statement in every)
    }
