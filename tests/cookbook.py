"""The queries and the columns of docs/sql.md, read out of the page."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "sql.md"
COLUMN = re.compile(r"^\| `(\w+)` \| (\S+) \| \S.*\|$", re.MULTILINE)


def _sections(chapter: str) -> dict[str, str]:
    """Heading -> text of the sections of a chapter."""
    _, _, text = PAGE.read_text().partition(f"\n## {chapter}\n")
    sections = text.partition("\n## ")[0].split("\n### ")[1:]
    return {title: body for title, _, body in (section.partition("\n") for section in sections)}


def queries(profile: str = "tiny") -> dict[str, str]:
    """Heading -> SQL of the cookbook, for a profile's run."""
    return {
        title: body.split("```sql\n")[1].split("```")[0].replace("'tiny/", f"'{profile}/")
        for title, body in _sections("Cookbook").items()
    }


def documented_columns() -> dict[str, list[tuple[str, str]]]:
    """View -> its columns and their types, as the page has them; each says what it is."""
    return {view: COLUMN.findall(body) for view, body in _sections("Views").items()}
