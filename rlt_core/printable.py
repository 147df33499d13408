"""Make text of unknown origin safe to show on a terminal or a page."""

from __future__ import annotations

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS = _PICTURES | {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """Return the text with control characters as symbols (␛), except line breaks and tabs.

    A model can generate escape sequences, which a terminal would execute.
    """
    return text.translate(_CONTROLS)
