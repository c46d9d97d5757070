"""What is asked for ahead, as documents: names, globs, forms, and how a wrong one is refused."""

import json
from typing import Any

import pytest

from endpoints.rules import Forms, ImageName, InvalidRequest, Rule, Selection
from endpoints.settings import InvalidSetting, Settings

RULE = {"repositories": "acme/*", "tags": "v*", "verbs": ["squash", "rootfs"], "platforms": ["linux/arm64"]}


def test_a_rule_says_which_tags_and_what_of_them() -> None:
    rule = Rule.parse(RULE | {"compression": "zstd"})
    assert rule.selection == Selection("acme/*", "v*")
    assert rule.forms == Forms(("squash", "rootfs"), ("linux/arm64",), "zstd")
    assert list(rule.forms) == [("squash", "linux/arm64"), ("rootfs", "linux/arm64")]
    assert len(rule.forms) == 2


def test_what_a_rule_does_not_say_is_every_tag_on_the_default_platform() -> None:
    rule = Rule.parse({"repositories": "acme/*", "verbs": ["squash"]})
    assert rule.selection.tags == "*"
    assert list(rule.forms) == [("squash", None)]


def test_platforms_are_told_in_their_normal_form_and_once() -> None:
    forms = Forms.parse({"verbs": ["aci", "aci"], "platforms": ["linux/x86_64", "linux/arm64/v8"]})
    assert forms == Forms(("aci",), ("linux/amd64", "linux/arm64"))


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("acme/*", "acme/app", True),
        ("acme/*", "acme/deep/app", True),
        ("acme/*", "other/app", False),
        ("acme/*", "Acme/app", False),
        ("acme/app", "acme/app", True),
        ("acme/app", "acme/app2", False),
        ("*", "acme/deep/app", True),
        ("*/app", "acme/app", True),
        ("acme/v[12]", "acme/v2", True),
        ("acme/v[!12]", "acme/v2", False),
        ("acme/?", "acme/a", True),
        ("acme/a.c", "acme/abc", False),
    ],
)
def test_a_glob_is_matched_against_the_whole_name_case_by_case(glob: str, name: str, matches: bool) -> None:
    assert Selection(glob).has_repository(*name.split("/", 1)) is matches


def test_tags_have_a_glob_of_their_own() -> None:
    selection = Selection("acme/*", "v*")
    assert [tag for tag in ("v1", "V1", "1v", "v") if selection.has_tag(tag)] == ["v1", "v"]
    assert str(selection) == "acme/*:v*"


@pytest.mark.parametrize(("glob", "namespace"), [("acme/*", "acme"), ("acme/app", "acme"), ("a*/x", None), ("*", None)])
def test_the_one_namespace_is_known_where_there_is_one(glob: str, namespace: str | None) -> None:
    assert Selection(glob).namespace == namespace


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("acme/app:1.0", ImageName("acme", "app", "1.0")),
        ("acme/deep/app", ImageName("acme", "deep/app", "latest")),
        ("acme/app@sha256:00", ImageName("acme", "app", "sha256:00")),
    ],
)
def test_an_image_is_named_by_tag_or_digest(text: str, name: ImageName) -> None:
    assert ImageName.parse(text) == name
    assert ImageName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["acme", "acme/", "acme/app:", "acme/app:1:2", "", "a b/c", f"a/{'b' * 300}:1"])
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not the name of an image"):
        ImageName.parse(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repositories": None}, "repositories is None; allowed: a glob of NAMESPACE/REPOSITORY"),
        ({"repositories": "acme"}, "repositories is 'acme'"),
        ({"repositories": 5}, "repositories is 5"),
        ({"tags": ""}, "tags is ''"),
        ({"tags": ["v*"]}, "allowed: a glob of tags"),
        ({"verbs": []}, "verbs is missing"),
        ({"verbs": None}, "verbs is missing"),
        ({"verbs": "squash"}, "verbs is 'squash'; allowed: a list of verbs"),
        ({"verbs": [5]}, "allowed: a list of verbs"),
        ({"platforms": ["amd64"]}, "platforms: 'amd64'"),
        ({"platforms": "linux/amd64"}, "allowed: a list of platforms"),
        ({"compression": "xz"}, "compression is 'xz'; allowed: none, gzip, zstd"),
        ({"repository": "acme/*"}, "'repository' is not a field; allowed: repositories, tags"),
    ],
)
def test_a_bad_rule_is_a_wrong_setting_that_names_the_rule(change: dict[str, Any], said: str) -> None:
    rules = [RULE, {key: value for key, value in (RULE | change).items() if value is not None}]
    for written in (rules, json.dumps(rules)):
        with pytest.raises(InvalidSetting) as refused:
            Settings.parse({"VERBS_PRIME": written})
        assert str(refused.value).startswith("VERBS_PRIME[1]: ")
        assert said in str(refused.value)


def test_a_rule_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"VERBS_PRIME\[0\]: this is no object with fields"):
        Settings.parse({"VERBS_PRIME": ["acme/*"]})


def test_rules_may_be_written_as_json() -> None:
    assert Settings.parse({"VERBS_PRIME": json.dumps([RULE])}).prime == (Rule.parse(RULE),)
