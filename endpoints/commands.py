"""The command line: serve, import, derive, gc, formats. The same code as over HTTP, and no server needed.

The law: data alone goes to stdout, talk to stderr, progress only to a terminal. A failure is one line; exit 0 is done,
1 failed, 2 asked for wrongly. Heavy modules are imported by the command that needs them: help comes at once.
"""

import os
import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from endpoints import accountcommands, admincommands, analysiscommand, checkcommand
from endpoints.commandline import (
    Commands,
    ReadConfiguration,
    compression_of,
    echo,
    examples,
    image_name,
    options_of,
    platform_of,
    services_of,
    terminated,
)
from endpoints.rules import ImageName

if TYPE_CHECKING:
    from util.compression import Compression
    from util.platform import Platform

_WORKERS = range(2, 33)


_STORING_SECONDS = 600.0  # for an image that is written already to be stored too


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "registry-verbs import oci-archive:app.tar acme/app:1.0",
        "registry-verbs derive squash acme/app:1.0 | docker load",
        "registry-verbs serve --port 8080",
        "curl -fL http://localhost:8080/c1/squash/acme/app/1.0 | docker load",
    ),
)
@click.version_option(package_name="registry-verbs", message="%(prog)s %(version)s")
def cli() -> None:
    """Hand out a registry's images as something else than a pull.

    An App Container Image, one squashed archive, a root file system: each as one file, from a tag.

    Without configuration everything lies under var/: an SQLite database and a folder of blobs. VERBS_CONFIG names a
    config.yaml, Quay's own if you like; each of its keys can also come from the environment.
    """


@cli.command(
    epilog=examples(
        "registry-verbs serve",
        "DB_URI=postgresql://quay@db/quay registry-verbs serve --host 0.0.0.0 --workers 8",
    )
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a processor, from 2 to 32]")
@click.pass_obj
def serve(read: ReadConfiguration, host: str, port: int, workers: int | None) -> None:
    """Serve derived images over HTTP."""
    from endpoints import startup
    from endpoints.server import Server
    from endpoints.service import make_service
    from endpoints.verbs import EXTENSION

    configuration = read()
    # What is wrong with the settings is told once, here, and not by every worker.
    startup.tell(configuration, make_service(configuration).extensions[EXTENSION])
    workers = min(max(os.cpu_count() or 1, _WORKERS.start), _WORKERS.stop - 1) if workers is None else workers
    Server(
        lambda: make_service(configuration),
        host=host,
        port=port,
        workers=workers,
        ready=lambda url: echo(f"Listening on {url}  (try: curl {url}/c1/)"),
    ).run()


@cli.command(
    "import",
    epilog=examples(
        "docker save -o app.tar acme/app:1.0",
        "registry-verbs import docker-archive:app.tar acme/app:1.0",
        "skopeo copy --all docker://alpine:3.20 oci-archive:alpine.tar",
        "registry-verbs import oci-archive:alpine.tar library/alpine:3.20",
    ),
)
@click.argument("source")
@click.argument("image", metavar="NAMESPACE/REPOSITORY:TAG", callback=image_name)
@click.option("--private", is_flag=True, help="Make the repository private, if this import makes it.")
@click.pass_obj
def import_(read: ReadConfiguration, *, source: str, image: ImageName, private: bool) -> None:
    """Put an image into the registry's database and storage.

    SOURCE is oci:DIR[:REF] (an OCI layout), oci-archive:FILE[:REF] (one as a tar) or docker-archive:FILE[:REF] (what
    `docker save` writes).
    """
    from data.importer import import_image
    from endpoints.progress import progress

    if ":" in image.reference:
        raise click.UsageError(f"an image is imported under a tag, not under a digest: {image}")
    services = services_of(read)
    with progress(source, None) as advance:
        import_image(
            source,
            image.namespace,
            image.repository,
            image.reference,
            engine=services.engine,
            storage=services.storage,
            indexes=services.indexes,
            private=private,
            progress=advance,
        )
    echo(f"{image} is imported; try: registry-verbs derive rootfs {image} | tar -tv", err=True)


@cli.command(
    epilog=examples(
        "registry-verbs derive squash acme/app:1.0 | docker load",
        "registry-verbs derive rootfs acme/app:1.0 --platform linux/arm64 -o rootfs.tar",
        "registry-verbs derive aci acme/app@sha256:0123… -o .",
        "registry-verbs derive ext4 acme/app:1.0 --option spare=1G -o root.ext4",
    )
)
@click.argument("verb")
@click.argument("image", metavar="NAMESPACE/REPOSITORY:TAG", callback=image_name)
@click.option("-o", "--output", default="-", metavar="FILE|DIR|-", help="Where to; - is stdout.  [default: -]")
@click.option(
    "--platform", callback=platform_of, metavar="OS/ARCH[/VARIANT]", help="Of an image for several platforms."
)
@click.option(
    "--compression",
    type=click.Choice(["none", "gzip", "zstd"]),
    callback=compression_of,
    help="What the image is wrapped in.  [default: what the format has]",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    callback=options_of,
    metavar="NAME=VALUE",
    help="What the format lets you choose, as `formats` lists it; may be repeated.",
)
@click.pass_obj
def derive(
    read: ReadConfiguration,
    *,
    verb: str,
    image: ImageName,
    output: str,
    platform: "Platform | None",
    compression: "Compression | None",
    options: dict[str, str],
) -> None:
    """Write what VERB makes of an image.

    `registry-verbs formats` lists the verbs. A FILE is there as a whole or not at all; into a DIR it goes under a
    telling name.
    """
    from endpoints.derive import Deriver, Wish
    from endpoints.making import CLOSE_SECONDS, Makings
    from endpoints.output import STDOUT, Output
    from endpoints.progress import progress
    from formats.formatter import InvalidOption

    if output == STDOUT and sys.stdout.isatty():
        raise click.UsageError("the image is binary and stdout is a terminal; say -o FILE, or pipe it")
    signal.signal(signal.SIGTERM, terminated)
    services = services_of(read)
    wish = Wish(verb, image.namespace, image.repository, image.reference, platform, compression, options)
    try:
        derived = Deriver(services).resolve(wish)
    except InvalidOption as problem:
        raise click.BadParameter(str(problem), param_hint="--option") from None
    makings, patience = Makings(services), _STORING_SECONDS
    try:
        stream = makings.stream(derived, asked_by="registry-verbs derive")
        with (
            closing(stream.chunks) as chunks,
            progress(derived.file_name, stream.size) as advance,
            Output(output, derived.file_name) as out,
        ):
            for chunk in chunks:
                out.write(chunk)
                advance(len(chunk))
    except BrokenPipeError:
        sys.exit(1)  # who read has had enough, and knows it
    except (KeyboardInterrupt, SystemExit):
        patience = CLOSE_SECONDS
        raise
    finally:
        makings.close(seconds=patience)


@cli.command(epilog=examples("registry-verbs formats"))
@click.pass_obj
def formats(read: ReadConfiguration) -> None:
    """List the installed formats: what each is for, its media type, a line to copy, and why it cannot be made here."""
    from endpoints.settings import Settings
    from formats import installed_formatters

    settings = Settings.parse(read())
    width = max(map(len, installed_formatters()))
    for verb, formatter in installed_formatters().items():
        url = f"{settings.url_scheme}://{settings.server_hostname}/c1/{verb}/NAMESPACE/REPOSITORY/TAG"
        echo(f"{verb:{width}}  {formatter.summary}  [{formatter.media_type}]")
        echo(f"{'':{width}}  {formatter.usage.format(url=url)}")
        for name, meaning in formatter.options.items():
            echo(f"{'':{width}}  option {name}: {meaning}")
        if formatter.unavailable is not None:
            echo(f"{'':{width}}  unavailable: {formatter.unavailable}")


@cli.command(
    epilog=examples(
        "registry-verbs gc --dry-run",
        "VERBS_QUOTA=500G VERBS_KEEP_DAYS=7 registry-verbs gc",
    )
)
@click.option("--dry-run", is_flag=True, help="Tell what would be dropped, and leave it.")
@click.option("--adopt", is_flag=True, help="Say that all blobs in the storage are this registry's, unknown ones too.")
@click.pass_obj
def gc(read: ReadConfiguration, *, dry_run: bool, adopt: bool) -> None:
    """Drop derived images that are out of date, unused or too much, and the registry's garbage.

    That is: images whose tag has moved or is gone; not fetched for VERBS_KEEP_DAYS; the least recently fetched beyond
    VERBS_QUOTA; and what makings that died have left. One line for each: the reason, bytes, and what it is. A server
    does this by itself every VERBS_GC_SECONDS.

    Of a registry of our own also: tags that ended longer ago than their namespace keeps them, what is left of deleted
    repositories, manifests without a tag, blobs that no manifest has had for VERBS_GRACE_SECONDS, uploads that nobody
    went on with for VERBS_UPLOAD_SECONDS, and blobs in storage that the registry does not know. Of a Quay's registry
    nothing is ever touched.
    """
    from endpoints.collector import collector_of
    from endpoints.registrygarbage import adopt_storage

    if adopt and dry_run:
        raise click.UsageError("--adopt changes something, and --dry-run nothing: say one of them")
    services = services_of(read)
    if adopt:
        adopt_storage(services)
    report = collector_of(services, search=True).collect(dry_run=dry_run)
    for finding in report.dropped:
        echo(f"{finding.reason:12}  {finding.size:>15}  {finding.what}")
    echo(report.summary, err=True)
    for failure in report.failures:
        echo(f"registry-verbs: {failure}", err=True)
    if report.failures:
        sys.exit(1)


for command in (analysiscommand.analyze, checkcommand.check, *admincommands.COMMANDS, *accountcommands.COMMANDS):
    cli.add_command(command)
