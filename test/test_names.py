"""Names: how users, organizations, robots, repositories and tags may be called, and how not."""

from collections.abc import Callable

import pytest

from util.names import (
    InvalidName,
    check_namespace,
    check_repository,
    check_robot,
    check_tag,
    check_username,
    robot_owner,
)

GOOD: dict[Callable[[str], object], tuple[str, ...]] = {
    check_namespace: ("a", "acme", "a.b", "a_b", "a__b", "a---b", "0", "x" * 255),
    check_repository: ("a", "app", "app/web", "a.b/c-d/e_f", "x" * 255),
    check_tag: ("1.0", "latest", "_x", "A", "v1.0-rc.1", "x" * 128),
    check_username: ("ab", "alice", "a.b", "a-b_c", "007", "x" * 255),
    check_robot: ("acme+ci", "a.b+c-d", f"{'x' * 100}+{'y' * 154}"),
}
EVIL = ("", " ", "\n", "\0", "/", "..", "a\n", "a b", "é", "a\u0301", "%61")
BAD: dict[Callable[[str], object], tuple[str, ...]] = {
    check_namespace: (*EVIL, "A", "a/b", "a..b", "a___b", "-a", "a-", "a+b", "x" * 256),
    check_repository: (*EVIL, "A", "a//b", "/a", "a/", "a/../b", "a/B", "a:b", "a@b", "x" * 256),
    check_tag: (*EVIL, ".a", "-a", "a:b", "x" * 129),
    check_username: (*EVIL, "a", "A", "a__b", "a--b", "a.", "$app", "a+b", "a@b.c", "x" * 256),
    check_robot: (
        *EVIL,
        "+",
        "acme",
        "acme+",
        "+ci",
        "a+ci",
        "acme+c",
        "acme+CI",
        "acme+ci+x",
        f"{'x' * 100}+{'y' * 155}",
    ),
}


@pytest.mark.parametrize(("check", "name"), [(check, name) for check, names in GOOD.items() for name in names])
def test_a_name_that_may_be_is_taken(check: Callable[[str], object], name: str) -> None:
    check(name)


@pytest.mark.parametrize(("check", "name"), [(check, name) for check, names in BAD.items() for name in names])
def test_a_name_that_may_not_be_is_refused_and_shown(check: Callable[[str], object], name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check(name)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("name", GOOD[check_username])
def test_every_user_s_name_is_one_for_a_namespace(name: str) -> None:
    check_namespace(name)


def test_a_robot_is_known_by_its_sign() -> None:
    assert check_robot("acme+ci") == robot_owner("acme+ci") == "acme"
    assert robot_owner("acme") is None
    assert robot_owner("+ci") == ""
