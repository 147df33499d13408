"""A stage alone, started as a person starts it: Chromium, the deployment's page, its form."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright
from prefect.client.schemas.objects import FlowRun

from flows.forms import essentials_form, overrides_form
from rlt_core.stages import STAGES
from tests.chromium import CHROMIUM, FLAGS
from tests.flows.test_forms import untouched_form
from tests.server.conftest import Server

WORK_S = 120_000.0
"""Milliseconds in which a stage of profile smoke surely ends."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture
def page(server: Server) -> Iterator[Page]:
    """A tab in which the owner has logged in."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1200, "height": 1400})
        tab.set_default_timeout(20_000)
        tab.goto(f"http://127.0.0.1:{server.port}/deployments")
        tab.locator("input[type=password]").fill(server.login["PREFECT_API_AUTH_STRING"])
        tab.get_by_role("button", name="Login").click()
        tab.wait_for_url("**/deployments")
        yield tab
        browser.close()


SEND = """async ([api, type]) => {
    const body = JSON.stringify({});
    const headers = {"Content-Type": type};
    try {
        const answer = await fetch(api + "/flows/filter", {method: "POST", headers, body});
        return [answer.status, await answer.text()];
    } catch (error) { return String(error) }
}"""


def test_a_page_from_elsewhere_reads_and_changes_nothing(
    server: Server, page: Page, tmp_path: Path
) -> None:
    """Also in the browser in which the owner has logged in."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    elsewhere = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    page.goto(f"http://127.0.0.1:{elsewhere.server_port}/")
    # JSON is asked for first, plain text is sent at once; the answer is not shown to the page.
    for type_ in ("application/json", "text/plain"):
        assert "Failed to fetch" in page.evaluate(SEND, [server.api, type_])
    page.goto(f"http://127.0.0.1:{server.port}/deployments")
    assert page.evaluate(SEND, [server.api, "application/json"])[0] == 401, "no cookie logs in"
    elsewhere.shutdown()


def field(page: Page, name: str) -> Locator:
    """The part of the form that belongs to one parameter, the first of its name."""
    label = f"./div/label//span[text()='{name} (Optional)']"
    return page.locator(f"xpath=//div[contains(@class,'schema-form-property')][{label}]").first


def open_form(server: Server, page: Page, stage: str) -> None:
    """Open the form of rlt/<stage>."""
    page.goto(f"http://127.0.0.1:{server.port}/deployments")
    page.get_by_placeholder("Search deployments").fill(stage)
    page.get_by_role("link", name=stage, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").first.click()


def run_from_form(server: Server, page: Page, pictures: Path, **numbers: str) -> UUID:
    """Open rlt/student-sft, choose profile smoke and variant dataset, fill, submit."""
    open_form(server, page, "student-sft")
    field(page, "profile").locator("button.p-select-button__control").press("Space")
    page.get_by_role("option", name="smoke").click()
    field(page, "variant").locator("textarea").fill("dataset")
    for name, value in numbers.items():
        expect(page.get_by_text("Peak of AdamW's learning rate.").first).to_be_visible()
        field(page, name).locator("input").fill(value)
    page.screenshot(path=pictures / "form.png")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("View run").first.dispatch_event("click")  # the note moves
    page.wait_for_url("**/runs/flow-run/*")
    return UUID(page.url.partition("?")[0].rsplit("/", 1)[-1])


def test_what_an_untouched_form_sends(server: Server, page: Page) -> None:
    for stage in STAGES:
        open_form(server, page, stage)
        expect(page.get_by_text("resources (Optional)").first).to_be_visible()
        with page.expect_request("**/create_flow_run") as submitted:
            page.route("**/create_flow_run", lambda route: route.abort())
            page.get_by_role("button", name="Submit").click()
        sent = submitted.value.post_data_json["parameters"]
        assert sent["overrides"] == untouched_form(overrides_form(stage)), stage
        assert sent.get("essentials", {}) == untouched_form(essentials_form(stage)), stage
        assert "nodes" not in sent


def test_fill_the_form_start_and_see_completed(
    server: Server, finished: FlowRun, page: Page, tmp_path: Path
) -> None:
    store = server.open_store()
    before = {manifest.ref.key for manifest in store.manifests()}
    run = run_from_form(server, page, tmp_path, learning_rate="0.003")
    expect(page.get_by_text("Completed").first).to_be_visible(timeout=WORK_S)
    server.finish(run)
    page.reload()
    expect(page.get_by_text("committed").first).to_be_visible()
    page.screenshot(path=tmp_path / "run.png")
    [new] = [one for one in store.manifests() if one.ref.key not in before]
    assert new.label == "student-sft[dataset]"
    assert new.config["sft"]["learning_rate"] == 0.003
    assert before <= {manifest.ref.key for manifest in store.manifests()}
    page.get_by_text("Artifacts", exact=True).first.click()
    page.wait_for_timeout(1500)
    page.screenshot(path=tmp_path / "artifacts.png")

    again = run_from_form(server, page, tmp_path, learning_rate="0.003")
    expect(page.get_by_text("Cached").first).to_be_visible(timeout=WORK_S)
    assert server.finish(again).state.name == "Cached"  # type: ignore[union-attr]


def test_the_page_of_a_pipeline(
    server: Server, finished: FlowRun, page: Page, tmp_path: Path
) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/runs/flow-run/{finished.id}")
    expect(page.get_by_text("Completed").first).to_be_visible()
    page.wait_for_timeout(3000)
    page.screenshot(path=tmp_path / "pipeline.png")
    page.get_by_text("Artifacts", exact=True).first.click()
    expect(page.get_by_text("smoke-full-pipeline-plan").first).to_be_visible()
    expect(page.get_by_text("smoke-full-pipeline-report").first).to_be_visible()
    page.screenshot(path=tmp_path / "pipeline-artifacts.png", full_page=True)
    for name in ("plan", "ranks-figure", "report"):
        page.goto(f"http://127.0.0.1:{server.port}/artifacts/key/smoke-full-pipeline-{name}")
        page.locator("a[href^='/artifacts/artifact/']").first.click()
        page.wait_for_timeout(1500)
        page.screenshot(path=tmp_path / f"{name}.png")
    picture = page.locator("img[src^='data:image/']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 100
