"""The explorer as a person uses it: Chromium, a mouse, a keyboard, a narrow window, no network."""

import re
import subprocess
import sys

import pytest
from playwright.sync_api import expect, sync_playwright

from rlt_core.explorer.look import export
from rlt_core.explorer.queries import Library
from rlt_core.store import Store
from tests.chromium import CHROMIUM, FLAGS
from tests.sample_store import commit, row, sample_run, score_row, scored_training_traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
HOSTILE = '</style></script><script>document.title="taken"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    made = sample_run(store, seeds=(0,))
    for variant in ("rlt", "sft"):
        scored_training_traces(store, made, variant=variant)
    asked = row("questions", question_id="q100", question=HOSTILE, solution=HOSTILE, trace=HOSTILE)
    inputs = {"questions": commit(store, "dataset-prep", {"questions": [asked]}, seed=7)}
    names = [{"trace_id": f"q100-{n}", "question_id": "q100", "sample": n} for n in range(2)]
    traces = [row("traces", text=HOSTILE, **name) for name in names]
    inputs["traces"] = commit(store, "trace-generation[x]", {"traces": traces}, inputs=inputs)
    scores = [score_row(100, -1.0 - n, n, teacher=HOSTILE) for n in range(2)]
    commit(store, "trace-scoring[x]", {"scores": scores}, inputs=inputs)
    return store


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(store):
    """Of a running `rlt traces`, with the token."""
    line = [sys.executable, "-m", "flows.cli.app", "traces", "--no-open", "--port", "0"]
    process = subprocess.Popen([*line, "--store", str(store)], stdout=subprocess.PIPE, text=True)
    yield re.search(r"http://\S+", process.stdout.readline())[0]
    process.send_signal(2)
    assert process.wait(20) == 130


@pytest.fixture
def tab(browser):
    """A tab in which no page may log an error."""
    found, faults = browser.new_page(viewport={"width": 1200, "height": 900}), []
    found.set_default_timeout(20_000)
    found.on("console", lambda message: faults.append(message.text))
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on("dialog", lambda dialog: faults.append(dialog.message))
    yield found
    assert not faults
    found.close()


def open_question(tab, address):
    """From the first page by clicks to a question with tokens."""
    tab.goto(address)
    tab.get_by_role("searchbox").fill("question</b> 5")
    tab.get_by_role("button", name="Show").click()
    tab.wait_for_url(lambda url: "q=" in url and "token" not in url and "teacher=" not in url)
    tab.locator("table.list a").first.click()
    expect(tab.locator(".why .lead")).to_contain_text(" beats rank ")


def test_by_mouse(tab, address, tmp_path):
    open_question(tab, address)
    token = tab.locator(".side .t.sets").first
    background = "node => getComputedStyle(node).backgroundColor"
    plain = token.evaluate(background)
    tab.get_by_label("share of the reward").check()
    expect(tab).to_have_url(re.compile("channel=reward"))
    assert token.evaluate(background) != plain
    expect(tab.locator(".legend.of-reward")).to_be_visible()
    expect(tab.locator(".legend.of-student")).to_be_hidden()
    token.hover()
    shown = token.evaluate("node => getComputedStyle(node, '::after').content")
    assert "to the reward" in shown and "student" in shown
    before = tab.locator(".ranking").inner_text()
    tab.get_by_text("What if the reward were another?").click()
    tab.get_by_label("λ").fill("0")
    expect(tab.locator(".ranking .was").first).to_be_visible()
    assert tab.locator(".ranking").inner_text() != before
    replayed = tab.url
    assert "kl_weight=0" in replayed and "channel=reward" in replayed
    ranks = tab.locator(".ranking").inner_text()
    tab.goto(replayed)
    assert tab.locator(".ranking").inner_text() == ranks, "the address is the whole state"
    tab.locator(".ranking tr", has_text="right").nth(2).get_by_text("left").click()
    expect(tab.locator(".side").first).to_contain_text("Rank 3")
    tab.get_by_text("all about it").first.click()
    expect(tab.get_by_role("heading", name="Measures")).to_be_visible()


def test_by_keyboard_in_a_narrow_window(tab, address):
    tab.set_viewport_size({"width": 400, "height": 800})
    open_question(tab, address)
    for path in ("/", "/traces", "/students", tab.url):
        tab.goto(path if "://" in path else "/".join(address.split("/")[:3]) + path)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400, path
    tab.locator("#by-student").focus()
    with tab.expect_response(lambda answer: "channel=teacher" in answer.url) as answered:
        tab.keyboard.press("ArrowRight")
    answered.value.finished()
    tab.wait_for_timeout(300)  # the new results are in place
    expect(tab.locator("#by-teacher")).to_be_checked()
    focused = "document.activeElement"
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate(f"{focused}.matches('.heat .t')"):
            break
    first = tab.evaluate(f"{focused}.dataset.v")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate(f"{focused}.dataset.v") != first
    assert "student" in tab.evaluate(f"getComputedStyle({focused}, '::after').content")
    tab.keyboard.press("Home")
    assert "token 1\n" in tab.evaluate(f"{focused}.dataset.v") + "\n"
    tab.keyboard.press("Escape")
    assert tab.evaluate(f"{focused} === document.body")


def test_hostile_texts_are_texts(tab, address, store, tmp_path):
    tab.goto(address)
    tab.goto("/".join(address.split("/")[:3]) + "/question/q100")
    expect(tab.locator("h1")).to_contain_text(HOSTILE)
    expect(tab.locator(".heat").first).to_have_text(HOSTILE)
    assert tab.title() != "taken" and tab.locator("img").count() == 0
    export(Library(store), ["q100"], tmp_path / "a.html")
    tab.goto((tmp_path / "a.html").as_uri())
    expect(tab.locator("h2").first).to_contain_text(HOSTILE)
    assert tab.title() != "taken" and tab.locator("img").count() == 0


def test_the_exported_file_works_offline(browser, store, tmp_path):
    file, faults = tmp_path / "a.html", []
    export(Library(store), ["q005", "q006"], file)
    context = browser.new_context(
        offline=True, color_scheme="dark", viewport={"width": 400, "height": 800}
    )
    tab = context.new_page()
    tab.on("console", lambda message: faults.append(message.text))
    tab.on(
        "request",
        lambda request: faults.append(request.url) if request.url != file.as_uri() else None,
    )
    tab.goto(file.as_uri())
    tab.get_by_label("teacher - student").check()
    expect(tab.locator(".legend.of-difference")).to_be_visible()
    tab.locator(".side .t").first.focus()
    tab.keyboard.press("ArrowRight")
    assert "token 2" in tab.evaluate("document.activeElement.dataset.v")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert not faults
    context.close()


def test_without_the_token_there_is_nothing(browser, address):
    context = browser.new_context()
    answer = context.new_page().goto("/".join(address.split("/")[:3]) + "/question/q005")
    assert answer.status == 403 and "question" not in answer.text()
    context.close()
