"""Make text of unknown origin safe to show on a terminal or a page."""

import re
from typing import Any

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_INVISIBLE = (
    *range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x2070),
    0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000),
)  # fmt: skip
"""C1 controls; marks of direction, its embeddings, overrides and isolates; line separators;
annotation marks; halves of surrogate pairs, which no terminal takes."""
_CONTROLS = _PICTURES | {127: 0x2421} | dict.fromkeys(_INVISIBLE, 0xFFFD)


def printable(text: str) -> str:
    """Return the text with control characters as symbols (␛), except line breaks and tabs.

    A model can generate escape sequences, which a terminal would execute, and controls of the
    direction of writing, which make text look like another one.
    """
    return text.translate(_CONTROLS)


_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20](?!(?<=[+-])[\d.]+([eE][+-]?\d+)?\Z)")


def spreadsheet_cell(value: Any) -> Any:
    """Return a value for CSV that a spreadsheet does not take for a formula: texts that could be
    one begin with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
