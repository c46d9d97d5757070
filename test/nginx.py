"""nginx for tests: a real one, in a folder of the test's own, with the configuration that is to be tried."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from test.clients import program
from test.waiting import eventually

AROUND = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log info;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxied; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {inner}
}}
"""
"""What stands around the `http` block's content where a distribution's own nginx.conf would."""


def around(folder: Path, inner: str) -> Path:
    """Write a configuration with `inner` in its `http` block into `folder`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "nginx.conf"
    file.write_text(AROUND.format(folder=folder, inner=inner))
    return file


@contextmanager
def nginx(file: Path) -> Iterator[Path]:
    """Run nginx with the configuration `file`, which it has found good, and give the log of its errors."""
    log, pid = file.parent / "error.log", file.parent / "pid"
    command = [program("nginx"), "-e", str(log), "-p", str(file.parent), "-c", str(file)]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr + log.read_text()
    pid.write_text("")
    with subprocess.Popen(command) as process:
        try:

            def listens() -> bool:
                assert process.poll() is None, log.read_text()
                return bool(pid.read_text())  # written after it listens

            eventually(listens)
            yield log
        finally:
            process.terminate()
