"""The operator's commands: prime, derived, admin-token, worker. The same code as over HTTP, and no server needed.

The law: as in commands.py, to which these belong.
"""

import getpass
import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from endpoints.commandline import Commands, ReadConfiguration, echo, examples, services_of
from endpoints.rules import ImageName, InvalidRequest, Selection

if TYPE_CHECKING:
    from data.jobs import Job
    from endpoints.jobrunner import JobRunner
    from endpoints.services import Services

_POLL_SECONDS = 0.25


@click.command(
    epilog=examples(
        "registry-verbs prime acme/app:1.0 --verb squash",
        "registry-verbs prime 'acme/*' --tag 'v*' --verb squash --verb aci --platform linux/amd64",
        "registry-verbs prime 'acme/*' --verb rootfs --detach",
    )
)
@click.argument("images", metavar="IMAGE|REPOSITORIES...", nargs=-1, required=True)
@click.option("--tag", "tags", metavar="GLOB", help="Which tags of REPOSITORIES.  [default: all]")
@click.option("--verb", "verbs", multiple=True, required=True, metavar="VERB", help="What to make; may be repeated.")
@click.option("--platform", "platforms", multiple=True, metavar="OS/ARCH[/VARIANT]", help="For which; may be repeated.")
@click.option(
    "--compression",
    type=click.Choice(["none", "gzip", "zstd"]),
    help="What they are wrapped in.  [default: what the format has]",
)
@click.option("--detach", is_flag=True, help="Only ask; a server or a worker makes them.")
@click.pass_obj
def prime(
    read: ReadConfiguration,
    *,
    images: tuple[str, ...],
    tags: str | None,
    verbs: tuple[str, ...],
    platforms: tuple[str, ...],
    compression: str | None,
    detach: bool,
) -> None:
    """Make derived images before anybody asks for them.

    IMAGE is NAMESPACE/REPOSITORY:TAG. REPOSITORIES is a glob of NAMESPACE/REPOSITORY, whose tags --tag chooses. What
    is there already is not made again. Exit status 1 says that one could not be made; each is named.
    """
    from endpoints.celeryapp import teller
    from endpoints.priming import Priming
    from endpoints.rules import Forms

    try:
        forms = Forms.parse({"verbs": verbs, "platforms": platforms, "compression": compression})
        what = [_named(text, tags) for text in images]
    except InvalidRequest as problem:
        raise click.UsageError(str(problem)) from None
    logging.getLogger("endpoints.jobrunner").setLevel(logging.ERROR)  # how each job went is told at the end
    configuration = read()
    services = services_of(lambda: configuration)
    tell = teller(services.settings) if detach else lambda _: None
    jobs = Priming(services, tell).ask(what, forms, asked_by=getpass.getuser())
    if detach:
        echo(f"{len(jobs)} derived images are asked for, in group {jobs[0].group_id}", err=True)
        return
    failed = _run(services, configuration, jobs)
    if failed:
        sys.exit(1)


def _named(text: str, tags: str | None) -> ImageName | Selection:
    if tags is not None or any(each in text for each in "*?["):
        return Selection.parse({"repositories": text, **({} if tags is None else {"tags": tags})})
    return ImageName.parse(text)


def _run(services: "Services", configuration: Mapping[str, Any], jobs: "list[Job]") -> int:
    """Run `jobs`, or wait for who does, and name those that could not be made; return how many that are."""
    from data.jobs import JobState
    from endpoints.jobrunner import JobRunner, described
    from endpoints.progress import jobs_progress
    from endpoints.services import operators_services
    from endpoints.stock import progress, unended

    runner = JobRunner(
        services.jobs,
        partial(operators_services, dict(configuration)),
        processes=services.settings.job_processes,
    )
    waiting = {job.id: job for job in jobs}
    stopped = _stopped_by_signals(runner)
    threads = [
        threading.Thread(target=_take_turns, args=(runner, waiting, stopped), daemon=True)
        for _ in range(min(runner.processes, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        with jobs_progress(len(jobs)) as show:
            pause = 0.0
            while waiting and not stopped.wait(pause):
                begin = time.monotonic()
                now = unended(services, waiting.values())
                for ended in waiting.keys() - now.keys():
                    del waiting[ended]
                running = [job for job in now.values() if job.state is JobState.RUNNING]
                made = progress(services, running)
                show(len(jobs) - len(waiting), {described(job): made[job.id] for job in running if job.id in made})
                pause = max(_POLL_SECONDS, 10 * (time.monotonic() - begin))
    finally:
        stopped.set()
        runner.stop()
        for thread in threads:
            thread.join()
    if waiting:
        echo(f"registry-verbs: {len(waiting)} derived images wait for a server or a worker", err=True)
    failed = 0
    for job in jobs:
        found = None if job.id in waiting else services.jobs.find(job.id)
        if found is not None and found.state is not JobState.DONE:
            why = found.reason if found.state is JobState.FAILED else "it was cancelled"
            echo(f"registry-verbs: {described(job)}: {why}", err=True)
            failed += 1
    return failed + len(waiting)


def _take_turns(runner: "JobRunner", waiting: "dict[str, Job]", stopped: threading.Event) -> None:
    """Run what of `waiting` is due, again and again: a job may be tried once more, or come back from another."""
    while waiting and not stopped.is_set():
        if not any(runner.run(job_id) for job_id in tuple(waiting)):
            stopped.wait(_POLL_SECONDS)


def _stopped_by_signals(runner: "JobRunner") -> threading.Event:
    """Return what is set when the process is told to end; `runner` stops then."""
    stopped = threading.Event()

    def stop(_: int, __: object) -> None:
        stopped.set()
        threading.Thread(target=runner.stop, name="stop", daemon=True).start()  # a signal handler must not wait

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopped


@click.group(cls=Commands)
def derived() -> None:
    """Look at the derived images that there are, and delete them."""


@derived.command("ls", epilog=examples("registry-verbs derived ls", "registry-verbs derived ls --state failed"))
@click.option("--namespace", metavar="NAMESPACE", help="Only those of this namespace.")
@click.option("--repository", metavar="REPOSITORY", help="Only those of a repository of this name.")
@click.option("--verb", metavar="VERB", help="Only what this verb made.")
@click.option("--state", type=click.Choice(["generating", "complete", "failed"]), help="Only those in this state.")
@click.pass_obj
def derived_ls(
    read: ReadConfiguration, *, namespace: str | None, repository: str | None, verb: str | None, state: str | None
) -> None:
    """List derived images: key, state, bytes, platform, verb, image; why it failed."""
    from data.derivedimages import State

    images = services_of(read).derived
    after = None
    while page := images.list(
        namespace=namespace,
        repository=repository,
        verb=verb,
        state=None if state is None else State(state),
        after=after,
    ):
        for each in page:
            size = each.bytes_done if each.size is None else each.size
            name = ImageName(each.namespace, each.repository, each.reference)
            why = f"  ({each.reason})" if each.reason is not None else ""
            echo(f"{each.key}  {each.state:10}  {size:>14}  {each.platform:14}  {each.verb} of {name}{why}")
        after = page[-1].key


@derived.command("rm", epilog=examples("registry-verbs derived rm 0123456789abcdef…"))
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.pass_obj
def derived_rm(read: ReadConfiguration, keys: tuple[str, ...]) -> None:
    """Delete derived images by their keys, as `derived ls` lists them. Who asks for one has it made again."""
    from endpoints.stock import DerivedNotFound, drop

    services = services_of(read)
    absent = False
    for key in keys:
        try:
            drop(services, key)
        except DerivedNotFound as problem:
            absent = True
            echo(f"registry-verbs: {problem}", err=True)
    if absent:
        sys.exit(1)


@click.group("admin-token", cls=Commands)
def admin_token() -> None:
    """Make, list and revoke the tokens of the admin API."""


@admin_token.command("create", epilog=examples("registry-verbs admin-token create ci --days 90 > token"))
@click.argument("name")
@click.option("--days", type=click.FloatRange(0, min_open=True), help="How long it is valid.  [default: until revoked]")
@click.pass_obj
def admin_token_create(read: ReadConfiguration, *, name: str, days: float | None) -> None:
    """Make a token and print it. It is shown this once; only a hash of it is kept."""
    echo(services_of(read).tokens.create(name, days=days))


@admin_token.command("ls", epilog=examples("registry-verbs admin-token ls"))
@click.pass_obj
def admin_token_ls(read: ReadConfiguration) -> None:
    """List the tokens by their names: when each was made, when it was used last, and until when it is valid."""
    for token in services_of(read).tokens.list():
        used = _day(token.last_used_ms, "never")
        ends = "expired" if token.expired else _day(token.expires_ms, "revoked")
        echo(f"{token.name:24}  made {_day(token.created_ms, '')}  used {used:10}  until {ends}")


@admin_token.command("revoke", epilog=examples("registry-verbs admin-token revoke ci"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def admin_token_revoke(read: ReadConfiguration, names: tuple[str, ...]) -> None:
    """Make tokens invalid, from now on."""
    tokens = services_of(read).tokens
    absent = [name for name in names if not tokens.revoke(name)]
    for name in absent:
        echo(f"registry-verbs: there is no token {name!r}", err=True)
    if absent:
        sys.exit(1)


@click.command(
    epilog=examples(
        "registry-verbs worker",
        "VERBS_BROKER_URL=redis://broker/0 DB_URI=postgresql://quay@db/quay registry-verbs worker --processes 8",
    )
)
@click.option("--processes", type=click.IntRange(1), help="Images made at a time.  [default: one a processor]")
@click.pass_obj
def worker(read: ReadConfiguration, processes: int | None) -> None:
    """Make derived images that were asked for ahead, on this machine, until told to end.

    With VERBS_BROKER_URL it hears of them by Redis or RabbitMQ; without, it looks into the database.
    """
    from endpoints import startup
    from endpoints.priming import check_rules, check_writable
    from endpoints.services import operators_services

    configuration = dict(read())
    services = operators_services(configuration)
    startup.tell(configuration, services)
    check_writable(services)
    check_rules(services.settings.prime, services.formatters)
    make_services = partial(operators_services, configuration)
    _log()

    def ready() -> None:
        echo("Waiting for jobs")

    if services.settings.broker_url is not None:
        from endpoints.celeryapp import CeleryWorker

        sys.exit(CeleryWorker(services, make_services, processes=processes).run(ready))
    from endpoints.background import watch
    from endpoints.jobrunner import JobRunner

    runner = JobRunner(services.jobs, make_services, processes=processes or services.settings.job_processes)
    stopped = _stopped_by_signals(runner)
    watching = watch(services, lambda _: None, stopped)
    ready()
    runner.serve()
    for thread in watching:
        thread.join()


def _log() -> None:
    from endpoints.loglines import log_to_stderr

    log_to_stderr(logging.INFO)


def _day(milliseconds: int | None, otherwise: str) -> str:
    from datetime import UTC, datetime

    return otherwise if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")


COMMANDS = (prime, derived, admin_token, worker)
