"""Another package adds a verb by being installed: test/plugin is installed and used as a stranger's would be."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIST = """
import json
from formats import installed_formatters
print(json.dumps({verb: type(formatter).__name__ for verb, formatter in installed_formatters().items()}))
"""


def python(*arguments: str, beside: Path | None = None, cwd: Path) -> str:
    """Run Python with this environment's packages, and those in the folder `beside`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (beside, HERE.parent))))}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packed(package: Path, folder: Path) -> Path:
    """Return a wheel of `package`, packed by hand: a build backend would have to be there, and offline."""
    project = tomllib.loads((package / "pyproject.toml").read_text())
    about, modules = project["project"], project["tool"]["setuptools"]["packages"]
    stem = f"{about['name'].replace('-', '_')}-{about['version']}"
    points = about["entry-points"]
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "".join(
            f"[{group}]\n{key} = {points[group][key]}\n" for group in points for key in points[group]
        ),
    }
    files = {f"{stem}.dist-info/{name}": text for name, text in files.items()}
    sources = [path for module in modules for path in (package / module).glob("*.py")]
    files |= {str(path.relative_to(package)): path.read_text() for path in sources}
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{stem}.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which pip has installed test/plugin."""
    folder = tmp_path_factory.mktemp("plugin")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    python(*pip, "--target", str(folder / "site"), str(packed(HERE / "plugin", folder)), cwd=folder)
    return folder / "site"


def test_a_package_adds_a_verb_by_being_installed(installed: Path, tmp_path: Path) -> None:
    without, beside = (json.loads(python("-c", LIST, beside=each, cwd=tmp_path)) for each in (None, installed))
    assert beside == {**without, "floppy": "Floppy"}


def test_its_verb_is_on_the_command_line(installed: Path, tmp_path: Path) -> None:
    shown = python("-c", "from app import main; main()", "formats", beside=installed, cwd=tmp_path)
    assert "the root file system in a box with a label" in shown


def test_it_passes_the_shipped_suite(installed: Path, tmp_path: Path) -> None:
    shutil.copy(HERE / "plugin" / "test_floppy.py", tmp_path)
    passed = python(
        "-m", "pytest", "-q", "--rootdir", ".", "-p", "no:cacheprovider", ".", beside=installed, cwd=tmp_path
    )
    assert "21 passed" in passed


def test_the_built_in_formats_stay_when_it_breaks(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path / "site")
    (tmp_path / "site" / "floppy_verb" / "__init__.py").write_text("raise SystemError('disk full')")
    listed = json.loads(python("-c", LIST, beside=tmp_path / "site", cwd=tmp_path))
    assert "floppy" not in listed
    assert {"aci", "rootfs", "squash"} <= listed.keys()


def test_a_second_package_with_the_same_verb_is_an_error_that_names_both(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path / "site")
    other = tmp_path / "site" / "diskette_verb-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: diskette-verb\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[registry_verbs.formats]\nfloppy = diskette:Diskette\n")
    tell = "from formats import DuplicateVerb, installed_formatters as f\ntry: f()\nexcept DuplicateVerb as e: print(e)"
    told = python("-c", tell, beside=tmp_path / "site", cwd=tmp_path)
    assert "floppy-verb 1.0 (floppy_verb:Floppy)" in told
    assert "diskette-verb 2.0 (diskette:Diskette)" in told
