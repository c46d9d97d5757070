"""`registry-verbs check`: what the configuration names, looked at, told line by line."""

import json
import sys
from contextlib import closing

import click

from endpoints.commandline import ReadConfiguration, examples
from util.printable import printable
from util.problem import Problem

_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}
_UNREADABLE = 2


@click.command(
    epilog=examples(
        "VERBS_CONFIG=/etc/registry-verbs.yaml registry-verbs check",
        "registry-verbs check --json | jq '.findings[] | select(.verdict != \"ok\")'",
    )
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document: `ok`, and `findings` in their order.")
@click.pass_obj
def check(read: ReadConfiguration, *, as_json: bool) -> None:
    """Look at everything that the configuration names, and tell what is right and what is not.

    Databases, their tables and rights, every storage, the newest tag's blobs, keys, the broker, formats, folders. One
    line for each: how it is found, what was looked at, the fact, and what to do. Nothing is changed, but for a small
    object that is written under verbs/ in the storage and deleted again.

    The exit status is 0 where nothing is wrong, 1 where something is, and 2 where the configuration cannot be read.
    """
    from endpoints.checks import CHECKS, Finding, Site, Verdict, findings, wrong

    width = max(len(subject) for subject in (*CHECKS, "storage default"))
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            verdict = click.style(f"{finding.verdict:7}", fg=_COLOURS[finding.verdict])
            # The colour is ours; what follows may quote a database or a server.
            click.echo(f"{verdict}  {printable(f'{finding.subject:{width}}  {finding.text}')}")

    status = 0
    try:
        site = Site(read())
    except Problem as problem:
        tell(wrong("configuration", str(problem)))
        status = _UNREADABLE
    else:
        with closing(site):
            for finding in findings(site):
                tell(finding)
        status = 1 if any(each.verdict is Verdict.WRONG for each in found) else 0
    if as_json:
        document = {"ok": status == 0, "findings": [finding.document() for finding in found]}
        click.echo(json.dumps(document, indent=2))
    sys.exit(status)
