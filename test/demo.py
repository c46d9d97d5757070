"""Makes a registry of our own ready to be tried, by an admin and an image where it has none, and says how: `make run`.

The law: a registry that somebody else keeps, named by DB_URI, is never written to. The admin's password is told once.
"""

import argparse
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from app import read_configuration
from data.administration import Administration
from data.registry import Registry
from endpoints.access import everything
from endpoints.services import make_services
from endpoints.settings import Settings
from formats import installed_formatters
from test.machineimage import build_demo

NAMESPACE, REPOSITORY, TAG = "demo", "python", "3"
ADMIN = "admin"


def first_image(registry: Registry) -> str | None:
    """Return `namespace/repository/tag` of an image of the registry, None where it has none."""
    after = 0
    while page := registry.repositories(after=after, limit=100):
        for found in page:
            for tag in registry.tags(found.namespace, found.repository)[-1:]:
                return f"{found.namespace}/{found.repository}/{tag}"
        after = page[-1].id
    return None


def first_admin(administration: Administration) -> str | None:
    """Make a superuser `admin` and return the password, which nobody can tell again; None where there are users."""
    if administration.users():
        return None
    password = secrets.token_urlsafe(15)
    administration.create_user(ADMIN, password, superuser=True)
    return password


def import_demo(work: Path) -> None:
    """Build the demo under `work` and import it as anybody would: by the command line."""
    folder = work / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    build_demo(folder, tag=TAG)
    program = Path(sys.executable).with_name("registry-verbs")
    subprocess.run([program, "import", f"oci:{folder}:{TAG}", f"{NAMESPACE}/{REPOSITORY}:{TAG}"], check=True)
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m test.demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the server will be (default %(default)s)")
    url = parser.parse_args().url
    settings = Settings.parse(read_configuration())
    if not settings.own_registry:
        return
    services = make_services(settings, permission=everything)
    password = None if settings.readonly else first_admin(services.administration)
    image = first_image(services.registry)
    if image is None:
        print(f"Making {NAMESPACE}/{REPOSITORY}:{TAG} of this machine's own Python ...", flush=True)
        import_demo(Path(settings.data_dir, "work"))
        image = f"{NAMESPACE}/{REPOSITORY}/{TAG}"
    if password is not None:
        print(f"The user {ADMIN}, who may do everything, has the password {password}")
        print("It is shown this once; `registry-verbs user password admin` sets another.")
    print("To try, from another terminal:")
    host = url.partition("://")[2]
    login = f"podman login --tls-verify=false --username {ADMIN}"
    if password is not None:
        print(f"  echo {password} | {login} --password-stdin {host}")
    elif services.accounts.find(ADMIN) is not None:
        print(f"  {login} {host}")
    for verb, formatter in installed_formatters().items():
        print(f"  {formatter.usage.format(url=f'{url}/c1/{verb}/{image}')}")


if __name__ == "__main__":
    main()
