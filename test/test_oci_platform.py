"""Platforms: one spelling for each, and which image suits whom."""

import pytest

from util.oci import InvalidPlatform, Platform


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/x86-64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("linux/riscv64", "linux/riscv64"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.20348)/amd64", "windows(10.0.20348)/amd64"),
    ],
)
def test_a_platform_has_one_spelling(text: str, normal: str) -> None:
    assert str(Platform.parse(text)) == normal
    assert Platform.parse(text) == Platform.parse(normal)
    assert hash(Platform.parse(text)) == hash(Platform.parse(normal))


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "linux/a b", "linux//v7"]
)
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidPlatform, match="linux/amd64"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ("linux/amd64", "linux/x86_64"),
        ("linux/amd64", "linux/amd64/v3"),
        ("linux/amd64/v2", "linux/amd64/v3"),
        ("linux/arm/v5", "linux/arm"),
        ("linux/arm64", "linux/arm64/v8.2"),
        ("linux/arm64", "linux/arm64/v9"),
        ("linux/arm64/v8.5", "linux/arm64/v9"),
        ("linux/mips64le/r6", "linux/mips64le/r6"),
        ("windows(10.0.20348.1)/amd64", "windows/amd64"),
        ("windows(10.0.20348.1)/amd64", "windows(10.0.20348)/amd64"),
    ],
)
def test_an_image_suits_who_wants_its_platform_or_one_that_has_all_of_it(image: str, wanted: str) -> None:
    assert Platform.parse(image).matches(Platform.parse(wanted))


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ("linux/amd64", "windows/amd64"),
        ("linux/386", "linux/amd64"),
        ("linux/arm/v7", "linux/arm64"),
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/amd64/v2", "linux/amd64"),
        ("linux/arm64/v9", "linux/arm64"),
        ("linux/arm64/v8.6", "linux/arm64/v9"),
        ("linux/mips64le", "linux/mips64le/r6"),
        ("linux/arm/soft", "linux/arm/v7"),
        ("windows/amd64", "windows(10.0.20348)/amd64"),
        ("windows(10.0.2034)/amd64", "windows(10.0.20348)/amd64"),
    ],
)
def test_an_image_of_anything_else_does_not_suit(image: str, wanted: str) -> None:
    assert not Platform.parse(image).matches(Platform.parse(wanted))


def test_the_nearer_variant_is_the_less_distant() -> None:
    wanted = Platform.parse("linux/arm/v8")
    distances = [Platform("linux", "arm", variant).distance(wanted) for variant in ("v8", "v7", "v6", "v5")]
    assert distances == sorted(distances, key=lambda distance: distance or 0)
    assert distances[0] == 0
