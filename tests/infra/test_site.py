"""The documentation's site: built from the pages, it works from its folder, without a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError

from infra import site

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")


@pytest.mark.parametrize(
    ("source", "text", "shown"),
    [
        ("README.md", "[a](docs/data.md#x)", "[a](data.md#x)"),
        ("docs/data.md", "[a](../README.md) [b](sql.md)", "[a](index.md) [b](sql.md)"),
        ("docs/data.md", "[a](../LICENSE) [`x.py`](../Makefile)", "a (`LICENSE`) `x.py`"),
        ("README.md", "[![b](docs/pipeline.svg)](LICENSE)", "![b](pipeline.svg)"),
        ("README.md", "[![b](docs/pipeline.svg)](docs/s3.md)", "[![b](pipeline.svg)](s3.md)"),
        ("docs/s3.md", "[a](https://b.c/d.md) [b](#here)", "[a](https://b.c/d.md) [b](#here)"),
    ],
)
def test_links_lead_to_pages_of_the_site(source: str, text: str, shown: str) -> None:
    assert site.with_links(source, text) == shown


def test_a_link_to_nothing_is_refused() -> None:
    with pytest.raises(PluginError, match=r"docs/data\.md: the link to nothing\.md"):
        site.with_links("docs/data.md", "[a](nothing.md)")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_every_page_works_from_its_folder(tmp_path: Path) -> None:
    """No request leaves the folder, the search finds, nothing is wider than a telephone."""
    from playwright.sync_api import sync_playwright

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))
    pages = sorted({*tmp_path.glob("*.html")} - {tmp_path / "404.html"})  # which is for a server
    assert len(pages) > 20
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: one.url.startswith("http") and wrong.append(one.url))
        for file in pages:
            page.goto(file.as_uri())
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
            assert page.evaluate(broken) == 0, file.name
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, file.name
            assert not re.search(r"```|\$\$", page.inner_text("article")), file.name
        page.set_viewport_size({"width": 1200, "height": 800})
        page.goto((tmp_path / "index.html").as_uri())
        page.keyboard.press("f")
        page.keyboard.type("lifecycle rule")
        page.locator(".md-search-result__item a[href*='s3.html']").first.wait_for()
        browser.close()
    assert not wrong
