"""Questions of the explorer as one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from rlt_core.environment import disk_space
from rlt_core.explorer import compare
from rlt_core.explorer.look import script, style, templates
from rlt_core.explorer.queries import Library


def export(library: Library, questions: Sequence[str], file: Path) -> None:
    """Write questions with all their explanations: the best and the worst side by side, why the
    reward differs, and every token's values. Raises UserError for one that is not there."""
    found = []
    for name in questions:
        comparison = compare.compared(
            library, library.of_question(name, None, None), {}, None, None
        )
        shown = [one.row for one in comparison["sides"]]
        others = [
            compare.side(library, row, {}, comparison["question"])
            for row in comparison["rows"]
            if row not in shown
        ]
        found.append((comparison, others))
    inline = {"style": style(), "script": script()}
    policy = "; ".join(
        f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in inline.items()
    )
    page = templates().get_template("export.html")
    text = page.render(
        found=found, policy=policy, store=str(library.store),
        **{name: Markup(text) for name, text in inline.items()},
    )  # fmt: skip
    with disk_space(file.parent):
        file.write_text(text, encoding="utf-8")
