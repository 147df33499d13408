"""Text of unknown origin, made safe to show on a terminal or a page."""

from __future__ import annotations

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS = _PICTURES | {127: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """The text with control characters as pictures (␛ for escape); line breaks and tabs stay.

    A model can write escape sequences, which a terminal would obey.
    """
    return text.translate(_CONTROLS)
