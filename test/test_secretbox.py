"""Texts that are encrypted, as Quay does it: what Quay wrote is read, and the other way round."""

import base64

import pytest

from data.secretbox import SecretBox, Undecryptable, UnusableSecret

TOKEN = "ROBOT0TOKEN9"

# Made by quay/quay, data/encryption.py, of TOKEN.
OF_QUAY = {
    "a-database-secret-key": "v0$$XVfmTc05B77EMzmjLdgEBGEow3IqIHhE3LTtFSQMd1FmLpdJoTKIAkU=",
    "36f25155-0c5a-4d3b-8f7e-2f9d0a5b1c77": "v0$$yRz3s/JbXMZF9XvaejT5ZZdUqItwFgMr7sC+/R1xibv8Deed+cTqhjQ=",
    "987654321012345678909876543210123456789": "v0$$rjD1m8zNc1sYE0vrSJGEEszCUwS+WIp0wAlGilSHlOxJISa0z57EBxc=",
    "12": "v0$$zfiOwROQBkonhHCmQE8X9wUMNZt58ql76m245YriyI7t3FFHi7MlGbE=",
    "0": "v0$$50Cf1bwD2GUuxjbW4CPSsb6T1CX/5S4SeEnmgbk/V0AH9AB3DDPsoMU=",
    "Schlüssel": "v0$$MoNK9pyKzJHEoi5W0ywKuqnGPt6mfIWNjb2Ym6V6kojI04EK3kzLEIE=",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx": "v0$$790KN4LK9Eb9kkPiW2/d0O3J+3bzYrmuQL6ZDN3Mx/IvbAL0T0Nc/8w=",
    "4095": "v0$$Y/F3qhbAbAGzXAaEa/LBIt83aNLw5YQTkhQQ4fTiaOLDEfigC54MFdw=",
    " 255 ": "v0$$y6VWu8+0S9mG1LcdnWXCwDQ1wnMhMu04LWQACbOEKJFACcGDs2qcggw=",
    "00112233445566778899aabbccddeeff": "v0$$8lxBluuVVF71JfGGfTOq4lBtRwIu74mxoMwNNC7boLTpZBw64J03XzQ=",
}


@pytest.mark.parametrize("key", OF_QUAY)
def test_what_quay_encrypted_is_read(key: str) -> None:
    assert SecretBox(key).decrypt(OF_QUAY[key]) == TOKEN


@pytest.mark.parametrize("key", OF_QUAY)
def test_what_is_encrypted_comes_out_again_and_looks_another_way_each_time(key: str) -> None:
    box = SecretBox(key)
    once, again = box.encrypt(TOKEN), box.encrypt(TOKEN)
    assert once != again
    assert box.decrypt(once) == box.decrypt(again) == TOKEN
    assert SecretBox(key).decrypt(once) == TOKEN


def test_what_is_encrypted_fits_into_quay_s_column() -> None:
    assert len(SecretBox("key").encrypt("A" * 64)) <= 255


@pytest.mark.parametrize("key", ["", "ключ"])
def test_a_key_that_quay_would_not_take_is_refused(key: str) -> None:
    with pytest.raises(UnusableSecret) as caught:
        SecretBox(key)
    assert not key or key not in str(caught.value)


def changed(text: str) -> str:
    version, content = text.split("$$")
    raw = bytearray(base64.b64decode(content))
    raw[20] ^= 1
    return f"{version}$${base64.b64encode(raw).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        changed(OF_QUAY["12"]),
        OF_QUAY["0"],  # of another key
        OF_QUAY["12"][:-4],
        OF_QUAY["12"].replace("v0", "v1"),
        OF_QUAY["12"].replace("$$", "$"),
        "v0$$",
        "v0$$AAAA",
        "v0$$é",
        "v0$$not base64",
        TOKEN,
        "",
    ],
)
def test_what_was_changed_or_never_encrypted_is_not_read(text: str) -> None:
    with pytest.raises(Undecryptable) as caught:
        SecretBox("12").decrypt(text)
    assert TOKEN not in str(caught.value)
