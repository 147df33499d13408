"""Hooks of mkdocs.yml: the repository's own pages, links to its files, formulas."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
}  # fmt: skip
"""Pages at the root of the repository, and what they are called in the site."""
TARGET = r"\]\((?!\w+:|#|/)([^)#\s]+)(#[^)\s]*)?\)"
IMAGE = re.compile(r"(!\[[^][]*)" + TARGET)
TITLED = re.compile(r"^(```\w+) ([\w.]+)$", re.MULTILINE)
LINK = re.compile(r"(?<!!)(\[(?:[^][]|\[[^][]*\])*)" + TARGET)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository, and llms.txt with links to the site's."""
    for name, page in PAGES.items():
        text = with_links(name, (ROOT / name).read_text("utf-8"))
        files.append(File.generated(config, page, content=text))
    listed = with_links("llms.txt", (ROOT / "llms.txt").read_text("utf-8"))
    files.append(File.generated(config, "llms.txt", content=listed.replace(".md)", ".html)")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links of a page of docs/ name pages of the site, and a block's file be its title."""
    source = page.file.src_uri
    if source in PAGES.values():
        return markdown
    return with_links(f"docs/{source}", TITLED.sub(r'\1 title="\2"', markdown))


def with_links(source: str, text: str) -> str:
    """Return a page whose links lead to the site's pages; a link to another file of the repository
    becomes its path. `source` is the page's path in the repository. Raise where no such file is."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: the link to {target} leads nowhere")
        if path in PAGES or path.startswith("docs/"):
            return f"{label}]({PAGES.get(path) or path.removeprefix('docs/')}{anchor or ''})"
        words = label[1:]
        return words if "`" in words or path in words or words[0] == "!" else f"{words} (`{path}`)"

    return LINK.sub(link, IMAGE.sub(link, text))


def formula(source: str, *_: Any, **__: Any) -> str:
    """Return a fenced block `math` as MathML, which browsers show without a script."""
    return f'<div class="math">{convert(source, display="block")}</div>'
