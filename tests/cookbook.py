"""The queries of docs/sql.md, read from the page."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "sql.md"


def queries(profile: str = "tiny") -> dict[str, str]:
    """Heading -> SQL of the cookbook, for a profile's run."""
    _, _, chapter = PAGE.read_text().partition("\n## Cookbook\n")
    sections = (section.partition("\n") for section in chapter.split("\n### ")[1:])
    return {
        title: body.split("```sql\n")[1].split("```")[0].replace("'tiny/", f"'{profile}/")
        for title, _, body in sections
    }
