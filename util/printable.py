r"""Text from strangers, made fit to be shown: on a terminal, in a line of a log, in an error.

Invariants:
- What comes out is one line of characters that a terminal only draws. Controls, C1 controls among them, line
  separators, what changes the direction of text, lone surrogates and characters that do not exist are written as
  `\x1b`, `\u202e` and `\U000e0001`.
- Text that has nothing of the sort comes out as it is, so the function may be applied twice.

Unicode Standard Annex 9 (what changes the direction); Unicode Technical Report 36, 3.1 (why that must not be shown).
"""


def printable(text: str) -> str:
    """Return `text` with each character that is more than a picture written as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(ord(each)) for each in text)


def one_line(text: str, *, most: int) -> str:
    """Return `text` printable, its lines joined by blanks, and of what is longer than `most` characters both ends."""
    if len(text) > most:
        # What is quoted stands in the middle, and what is to be done about it at the end.
        text = text[: most - most // 4] + "…" + text[len(text) - most // 4 :]
    return text if text.isprintable() else printable(" ".join(text.split()))


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
