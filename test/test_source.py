"""Rules about the sources themselves, read from their syntax trees: what import contracts cannot say."""

import ast
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pytest_socket import SocketConnectBlockedError

import app
from endpoints.commands import cli
from endpoints.settings import Settings
from formats import installed_formatters
from util.problem import Problem

ROOT = Path(app.__file__).parent
PACKAGES = ("data", "endpoints", "formats", "util")
COMMANDS = (
    "accountcommands",
    "admincommands",
    "analysiscommand",
    "checkcommand",
    "commandline",
    "commands",
    "progress",
)
INSTALLED = sorted([ROOT / "app.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))])
TESTS = sorted((ROOT / "test").rglob("*.py"))
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(path: Path) -> Iterator[str]:
    """Return the top-level name of everything that a module imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def importers(*libraries: str) -> set[str]:
    return {name(path) for path in INSTALLED if not set(libraries).isdisjoint(imported(path))}


def called(node: ast.AST) -> str:
    """Return the dotted name that a call calls, empty for anything else."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_only_the_composition_root_reads_the_environment() -> None:
    readers = {
        name(path)
        for path in INSTALLED
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.Attribute, ast.Name, ast.ImportFrom))
        and re.search(r"\b(?:environb?|getenvb?)\b", ast.unparse(node))
        and "os" in ast.unparse(node)
    }
    assert readers == {"app.py"}


def test_only_the_s3_drivers_know_amazon_s_libraries() -> None:
    assert importers("boto3") == {"data/storage/s3.py"}
    assert importers("botocore") == {f"data/storage/{driver}.py" for driver in ("cloudfront", "s3", "sts")}


def test_only_their_drivers_know_azure_and_swift() -> None:
    assert importers("azure") == {"data/storage/azure.py"}
    assert importers("swiftclient", "keystoneclient", "keystoneauth1") == {"data/storage/swift.py"}


def test_only_data_knows_sqlalchemy() -> None:
    assert {module.partition("/")[0] for module in importers("sqlalchemy")} == {"data"}


def test_only_the_ways_in_know_the_web_and_the_command_line() -> None:
    web = importers("flask", "werkzeug", "gunicorn", "click")
    assert {module.partition("/")[0] for module in web - {"app.py"}} == {"endpoints"}
    assert importers("click") <= {f"endpoints/{module}.py" for module in COMMANDS}
    assert "endpoints/derive.py" not in web


def test_only_the_formats_package_looks_for_entry_points() -> None:
    seekers = {name(path) for path in INSTALLED for node in ast.walk(tree(path)) if "entry_points" in called(node)}
    assert {module.partition("/")[0] for module in seekers} == {"formats"}


@pytest.mark.parametrize("path", INSTALLED, ids=name)
def test_nothing_installed_prints(path: Path) -> None:
    assert [
        node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and called(node) == "print"
    ] == []


@pytest.mark.parametrize("path", INSTALLED + TESTS, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(tree(path)) or ""
    assert len(docstring) > 30, "a module docstring says what the module is, then its law"


@pytest.mark.parametrize("path", INSTALLED + TESTS, ids=name)
def test_nothing_is_left_to_do(path: Path) -> None:
    source = path.read_text()
    words = [word for word in ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error") if word in source]
    escapes = [called(node) for node in ast.walk(tree(path)) if re.search(r"\b(?:skip|skipif|xfail)$", called(node))]
    assert words + escapes == []


def test_nothing_names_the_folder_it_was_written_in() -> None:
    texts = [*INSTALLED, *TESTS, *ROOT.glob("[!.]*.*"), ROOT / "Makefile", *ROOT.glob(".ci/*")]
    here = re.compile(rf"(?<![\w.~-]){re.escape(str(ROOT))}(?=[/\s\"'])")
    assert {name(path) for path in texts if path.is_file() and here.search(path.read_text(errors="replace"))} == set()


def test_no_test_leaves_the_machine() -> None:
    # The guard warns before it raises, and here a warning is an error.
    with pytest.raises((SocketConnectBlockedError, UserWarning), match=r"host \"192\.0\.2\.1\""):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def kinds(kind: type[Problem]) -> Iterator[type[Problem]]:
    for narrower in kind.__subclasses__():
        yield narrower
        yield from kinds(narrower)


def test_each_problem_is_raised_by_the_one_package_that_defines_it() -> None:
    for path in INSTALLED:
        __import__(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    defined = {kind.__name__: kind.__module__.partition(".")[0] for kind in kinds(Problem)}
    strangers = {
        (name(path), node.exc.func.id)
        for path in INSTALLED
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
        if defined.get(node.exc.func.id, name(path).partition("/")[0]) not in name(path)
    }
    assert strangers == set()


def test_problem_codes_are_in_capitals() -> None:
    codes = {kind.code for kind in kinds(Problem)}
    assert {code for code in codes if not re.fullmatch(r"[A-Z][A-Z0-9_]+", code)} == set()


@pytest.mark.parametrize("key", ["VERBS_CONFIG", *Settings.KEYS])
def test_the_readme_documents_every_setting(key: str) -> None:
    assert f"`{key}`" in README


def test_the_readme_names_no_setting_that_is_none() -> None:
    assert set(re.findall(r"\bVERBS_[A-Z_]+\b", README)) <= {"VERBS_CONFIG", *Settings.KEYS}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_within_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text())
    for file, anchor in links:
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), (file, anchor)


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_of_a_page_is_longer_than_can_be_read(page: Path) -> None:
    assert [
        line for line in without_blocks(page).splitlines() if len(line) > 170 and not line.startswith(("|", "    "))
    ] == []


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: str(command.name))
def test_the_readme_documents_every_command_and_option(command: click.Command) -> None:
    assert f"registry-verbs {command.name}" in README
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if option not in README] == []


@pytest.mark.parametrize("verb", ["aci", "squash", "rootfs"])
def test_the_readme_has_a_line_to_copy_for_every_verb(verb: str) -> None:
    assert verb in installed_formatters()
    assert re.search(rf"curl .*/c1/{verb}/", README)


def pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9_.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE))


def test_the_tests_run_with_the_pins_of_the_service() -> None:
    service = pins("requirements.txt")
    assert len(service) > 10
    assert service.items() <= pins("test/requirements.txt").items()


@pytest.mark.parametrize("file", ["requirements.txt", "test/requirements.txt"])
def test_pins_carry_hashes_and_name_no_place_to_get_them_from(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"://|^\s*--(?!hash)", text, re.MULTILINE)
    unhashed = re.findall(r"^[a-z0-9_.-]+==\S+$", text, re.MULTILINE)
    assert unhashed == []


def test_the_makefile_tells_of_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    assert [target for target in phony[1].split() if not re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE)] == []
