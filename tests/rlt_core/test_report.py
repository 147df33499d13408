"""The report says what the artifacts say, and no text of a model can act in it."""

import base64
import hashlib
import re
import subprocess
import sys
import unicodedata
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from rlt_core.evaluation.scores import score_rows
from rlt_core.printable import printable
from rlt_core.report.answer import legend
from rlt_core.report.gather import ReportData
from rlt_core.report.render import render_report
from rlt_core.report.statistics import paired_difference
from rlt_core.report.texts import cell, fenced
from rlt_core.report.trace_sets import mean_over_seeds
from rlt_core.stages import ReportConfig
from rlt_core.store import Store
from tests import sample_report
from tests.chromium import CHROMIUM, FLAGS
from tests.sample_report import Page, lines_of, opening, written
from tests.sample_store import (
    commit,
    eval_row,
    row,
    sample_run,
    score_row,
    scored_training_traces,
    step_rows,
)

TOY = "positive control of the pipeline at toy scale, not evidence for the paper"
report_of = partial(sample_report.report_of, profile="tiny", title="full-pipeline")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, sample_run(store)


@pytest.fixture(scope="module")
def data(run):
    return report_of(*run)


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    render_report(data, folder)
    return folder


# ---------------------------------------------------------------- statistics
def test_a_difference_pairs_questions_and_only_common_ones_count():
    easy_SQ = np.arange(21.0)[None]
    harder_SQ = easy_SQ - 0.5
    harder_SQ[0, 20] = np.nan
    found = paired_difference(easy_SQ, harder_SQ)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.questions == 20
    back = paired_difference(harder_SQ, np.repeat(easy_SQ, 2, axis=0))
    assert back.value == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="no question"):
        paired_difference(easy_SQ, np.full((1, 21), np.nan))


# ---------------------------------------------------------------- what is gathered
def test_scores_are_over_seeds_and_against_the_base(data):
    lines = lines_of(data, "test")
    assert list(lines) == ["base", "dataset", "rlt"]
    base, rlt = lines["base"], lines["rlt"]
    assert (base["seeds"], rlt["seeds"], base["difference"]) == (1, 2, None)
    assert base["value"].value == pytest.approx(4 / 12)
    assert rlt["method"].value == pytest.approx(11 / 12)
    assert rlt["method_difference"].value == pytest.approx(7 / 12)
    assert rlt["method"].low < rlt["method"].value < rlt["method"].high
    assert set(rlt["by_seed"]) == {0, 1}
    first, *_ = data.experiment.contrasts
    assert (first["model"], first["baseline"]) == ("rlt", "dataset") and first["primary"]
    assert first["difference"].value == pytest.approx(3 / 12)


def test_ungraded_completions_and_pass_at_k_as_the_evaluation_has_them(tmp_path):
    store = Store(str(tmp_path))
    rng = np.random.default_rng(0)
    model = commit(store, "base-model", {})
    made, scored = {}, {}
    for variant, seeds in (("base", [None]), ("rlt", [0, 1])):
        for seed in seeds:
            samples = [
                eval_row(q, None if q == 3 else bool(rng.random() < 0.5), sample=s, model="m")
                for q in range(8)
                for s in range(3)
            ]
            scores = score_rows(samples, [1, 2], variant)
            scored[variant, seed] = {row["metric"]: row["value"] for row in scores}
            tables = {"eval_samples": samples, "eval_scores": scores}
            name = f"evaluation[{variant}]"
            metrics = {"test/ungraded": 3.0}
            made[f"{name}@{seed}"] = commit(
                store, name, tables, seed=seed, metrics=metrics, inputs={"model": model}
            )
    data = report_of(store, made)
    rlt = lines_of(data, "test")["rlt"]
    each = [scored["rlt", seed]["avg@3"] for seed in (0, 1)]
    assert rlt["value"].value == pytest.approx(np.mean(each))
    assert rlt["by_seed"] == pytest.approx(dict(enumerate(each)))
    assert (rlt["questions"], rlt["ungraded"]) == (7, 6)
    found = {(row["model"], row["seed"]): row["value"].value for row in data.evaluations.pass_at}
    assert found == {name: values["pass@2"] for name, values in scored.items()}
    assert any("3 completions of test could not be graded" in alarm for alarm in data.alarms)


def test_rewards_before_and_after_on_the_same_questions(data):
    before, after = data.rewards
    assert "before RL" in before["name"] and "after RL" in after["name"]
    assert after["reward"].value - before["reward"].value == pytest.approx(2.0)
    assert data.reward_gain.value == pytest.approx(2.0)
    assert before["by_seed"] == pytest.approx(dict.fromkeys((0, 1), before["reward"].value))
    assert before["traces"] == 16


def test_curves_are_of_rewards_and_losses_but_not_of_rank_students(data):
    rewards = [curve for curve in data.curves if curve["quantity"] == "reward"]
    assert [curve["name"] for curve in rewards] == ["teacher-grpo@0", "teacher-grpo@1"]
    steps = np.linspace(-3, -1, 25)
    assert rewards[0]["first"] == pytest.approx(steps[:10].mean())
    assert rewards[0]["last"] == pytest.approx(steps[-10:].mean())
    assert not any("rank-" in curve["name"] for curve in data.curves)
    assert {curve["label"] for curve in data.curves if curve["quantity"] == "loss"} == {
        "teacher-sft", "student-sft[rlt]", "student-sft[dataset]",
    }  # fmt: skip


def test_the_rank_ablation_is_that_of_its_artifact(data, run):
    _, made = run
    metrics = made["rank-statistics[reward]"].metrics
    ranks, statistics = data.ranks, data.ranks["statistics"]
    assert [line["rank"] for line in ranks["lines"]] == [1, 2, 3, 4]
    assert statistics["pearson"]["value"].value == metrics["pearson"]
    assert statistics["slope_points"]["value"].low == metrics["slope_points_low"]
    assert ranks["lines"][0]["value"].value > ranks["lines"][-1]["value"].value
    assert statistics["utility_spearman"]["value"].low == metrics["utility_spearman_low"]
    assert ranks["lines"][0]["utility"] is not None
    others = [one for one in data.rank_sets if one["ranked_by"] != "reward"]
    assert not any("utility_spearman" in one["statistics"] for one in others)


def test_the_legend_says_which_traces_a_student_learned_from(tmp_path):
    store = Store(str(tmp_path))
    made = sample_run(store, seeds=(0,), ranks=0)
    traces, _ = scored_training_traces(store, made)
    teacher = "of each question's traces of the teacher before RL"
    said = {
        "fits": ({"fits": True}, f"the best by reward {teacher}"),
        "second": ({"rank": 2}, f"number 2 by reward {teacher}"),
        "few": ({"n_questions": 9}, "traces of the teacher before RL, 4 questions"),
        "own": ({"n_questions": 9, "traces": "dataset"}, "the data set's own traces, 4 questions"),
    }  # fmt: skip
    made["traces"] = traces
    for name, (config, _) in said.items():
        given = {"traces": traces} if name != "own" else {}
        student = commit(
            store, f"student-sft[{name}]", {}, seed=0, config=config, metrics={"questions": 4.0},
            inputs={"model": made["base-model"], **given},
        )  # fmt: skip
        answers = {"eval_samples": [eval_row(1, True)], "eval_scores": []}
        made[student.label] = student
        made[f"{name}@0"] = commit(
            store, f"evaluation[{name}]", answers, seed=0, inputs={"model": student}
        )
    shown = {row["model"]: row["what"] for row in legend(report_of(store, made))}
    for name, (_, words) in said.items():
        assert shown[name] == f"the base fine-tuned on {words}"


def test_data_costs_and_lineage(data, run, folder):
    _, made = run
    assert len(data.nodes) == len(made)
    keys = {manifest.ref.key for manifest in made.values()}
    assert {ref.key for node in data.nodes for ref in node.manifest.inputs.values()} <= keys
    text = (folder / "report.md").read_text()
    assert "| `dataset-prep` | 4 validation, 6 train | 1 duplicate, 1 prompt\\_too\\_long |" in text
    assert f"**Cost.** {2 * len(made)} s of computing, none of it on a GPU; {len(made)} art" in text
    assert "All rows: device cpu; time 2.0 s." in text, "what all rows share is below the table"


def test_alarms_are_raised_and_only_where_something_is_wrong(data, tmp_path):
    assert len(data.alarms) == 1
    assert data.alarms[0].startswith("teacher-grpo@1: the reward fell")
    store = Store(str(tmp_path))
    steps = [
        step | {"clipped": 0.9, "unclosed": 0.0} for step in step_rows("teacher-grpo", [-1.0] * 12)
    ]
    scores = [
        score_row(1, -1.0, closed=False),
        score_row(2, -1.0, closed=False),
        score_row(3, None),
    ]
    flat = {"alarm_zero_variance": 1.0}
    made = {
        "teacher-grpo@0": commit(
            store, "teacher-grpo", {"train_steps": steps}, seed=0, metrics=flat
        ),
        "scores": commit(store, "trace-scoring[rlt]", {"scores": scores}, seed=0),
    }
    alarms = "\n".join(report_of(store, made).alarms)
    assert "no group had two different rewards" in alarms
    assert "90% of the completions of its last steps are cut" in alarms
    assert "1 of 3 traces were too long" in alarms
    assert "100% of the traces have no end" in alarms


DIAGNOSTICS = {
    "copied": 0.75, "compression": 2.5, "doubt": 12.0, "clipped": True, "think_tokens": 40,
    "think_mean": -1.25, "rank_surprisal": 3.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    """Two trace sets: one with all diagnostics, one as an older version wrote it."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    bare = {"copied": None, "compression": 7.5, "doubt": 0.0, "clipped": False, "think_mean": -0.75}
    scores = [
        score_row(1, -1.0, **DIAGNOSTICS),
        score_row(2, -1.0, **bare),
        score_row(3, -1.0, clipped=False),
    ]
    made = {
        "trace-scoring[rlt]@0": commit(store, "trace-scoring[rlt]", {"scores": scores}, seed=0),
        "trace-scoring[old]@0": commit(
            store, "trace-scoring[old]", {"scores": [score_row(1, -1.0)]}, seed=0
        ),
    }
    return report_of(store, made)


def test_means_of_trace_sets_are_over_the_traces_that_have_a_value(diagnosed):
    new, old = diagnosed.traces
    expected = {
        "name": "teacher after RL, training questions (students' traces)", "traces": 3,
        "copied": 0.75, "compression": 5.0, "doubt": 6.0, "clipped": pytest.approx(1 / 3),
        "think_tokens": pytest.approx(80 / 3), "think_mean": -1.0, "rank_surprisal": 3.5,
    }  # fmt: skip
    assert {name: new[name] for name in expected} == expected
    known = dict.fromkeys(DIAGNOSTICS) | {"name": "old", "traces": 1, "think_tokens": 20}
    assert {name: old[name] for name in known} == known


def test_columns_that_an_older_artifact_lacks_are_no_values(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = commit(store, "trace-scoring[old]", {"scores": [score_row(1, -1.0)]}, seed=0)
    folder = tmp_path / "old"
    folder.mkdir()
    (file,) = store.intact(made).glob("scores.parquet")
    pq.write_table(
        pq.read_table(file).drop_columns(["copied", "clipped", "rank_surprisal"]),
        folder / "scores.parquet",
    )
    config = ReportConfig(profile="laptop", title="report")
    data = ReportData({"old": (made, folder)}, config, "0" * 16, store)
    assert (data.traces[0]["clipped"], data.traces[0]["think_tokens"]) == (None, 20)
    assert data.alarms == []


def test_trace_sets_are_in_both_reports_and_in_csv(diagnosed, tmp_path):
    text, html, tables = written(diagnosed, tmp_path)
    page = Page(html)
    for shown in (page.text, text):
        assert "words of doubt per 1,000 tokens" in shown and "above 50% copied" in shown
    (cells,) = [table[1:] for table in page.tables if table[0][1] == "number"]
    assert cells[0][1:] == ["3", "75.0", "5.00", "6.00", "33.3", "26.7", "-1.00", "3.50"]
    assert cells[1][1:] == ["1", *"\u2013" * 4, "20.0", *"\u2013" * 2]
    new, old = tables["traces.csv"]
    assert float(new["clipped"]) == diagnosed.traces[0]["clipped"] and old["copied"] == ""
    assert list(new) == ["name", "traces", *DIAGNOSTICS]


def test_diagnostics_raise_alarms_with_their_thresholds(diagnosed, tmp_path):
    name = "teacher after RL, training questions (students' traces)"
    assert diagnosed.alarms == [
        f"{name}: 75% of the solutions' runs of 8 tokens are also in the traces (alarm above 50%)",
        f"{name}: 33% of the traces are cut at the token limit (alarm above 10%)",
    ]
    store = Store(str(tmp_path))
    steps = [step | {"compression": 8.25} for step in step_rows("teacher-grpo", [-1.0] * 12)]
    made = {"teacher-grpo@0": commit(store, "teacher-grpo", {"train_steps": steps}, seed=0)}
    (alarm,) = report_of(store, made).alarms
    assert alarm == (
        "teacher-grpo@0: the completions of its last steps compress 8.2 times, as repetition does "
        "(alarm above 6)"
    )


# ---------------------------------------------------------------- what is written
def test_texts_are_inert_and_whole_in_html(folder):
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags and "b" not in page.tags
    for text in ("<script>alert(0)</script>", "<b>question</b> 0", "data set ```trace``` 0"):
        assert text in page.text
    assert "img" not in page.tags and page.tags.count("figure") >= 4


def test_the_page_runs_no_script_and_sends_no_request(folder):
    """Were a text of a model to become HTML, it could still do nothing."""
    html = (folder / "report.html").read_text()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="(.+?)"', html)
    [style] = re.findall(r"<style>(.+?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert set(policy.split("; ")) == {
        "default-src 'none'", "base-uri 'none'", "form-action 'none'",
        f"style-src 'sha256-{digest}'",
    }  # fmt: skip
    assert html.index("Content-Security-Policy") < html.index("<title>")
    assert "style=" not in html and 'class="right"' in html


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium_keeps_a_hostile_text_from_acting(folder, tmp_path):
    from playwright.sync_api import sync_playwright

    hostile = """
        <script>document.title = "owned"</script>
        <img src="http://127.0.0.1:9/leak" onerror="document.title = 'owned'">
        <style>body { display: none } @import "http://127.0.0.1:9/style";</style>
        <iframe src="http://127.0.0.1:9/frame" srcdoc="<script>top.document.title='owned'</script>">
        </iframe><form id="f" action="http://127.0.0.1:9/form"><input name="a"></form>
        <base href="http://127.0.0.1:9/">"""
    file = tmp_path / "report.html"
    file.write_text((folder / "report.html").read_text().replace("<body>", f"<body>{hostile}", 1))
    requests = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.on("requestfinished", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        page.evaluate("document.getElementById('f').submit()")
        page.wait_for_timeout(500)
        assert page.evaluate("document.title").startswith("full-pipeline")
        assert page.url == file.as_uri()
        assert page.locator("h1").is_visible()
        assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1120px"
        assert page.evaluate("document.querySelector('figure svg').clientWidth") > 300
        aligned = "getComputedStyle(document.querySelector('td.right')).textAlign"
        assert page.evaluate(aligned) == "right"
        browser.close()
    assert [url for url in requests if url.startswith("http")] == []


def test_texts_are_inert_and_whole_in_markdown(folder):
    tokens = MarkdownIt("commonmark").enable("table").parse((folder / "report.md").read_text())
    blocks = [token.content.strip() for token in tokens if token.type == "fence"]
    assert "sft-held-out explains <script>alert(0)</script>" in blocks
    assert "data set ```trace``` 0" in blocks
    inline = [child for token in tokens for child in token.children or []]
    assert not [t for t in (*tokens, *inline) if t.type in ("html_block", "html_inline")]
    pictures = [token.attrs["src"] for token in inline if token.type == "image"]
    assert {"answer.svg", "scores.svg", "reward.svg", "ranks.svg", "loss.svg"} <= {*pictures}
    for name in pictures:
        assert ElementTree.parse(folder / name).getroot().tag.endswith("svg")


@pytest.mark.parametrize("text", ["``` end", "`" * 9, "~~~\n```", "", "a\n\n    b", "</pre>"])
def test_a_fence_holds_any_text(text):
    (token,) = MarkdownIt().parse(fenced(text))
    assert token.type == "fence"
    assert token.content == f"{text}\n"


@pytest.mark.parametrize("text", ["a | b", "<b>x</b>", "[x](y)", "*a* _b_ `c`", "a\nb", "\\|"])
def test_a_cell_shows_text_as_it_is_on_one_line(text):
    table = f"| h |\n|---|\n| {cell(text)} |\n"
    html = MarkdownIt("commonmark").enable("table").render(table)
    assert html.count("<td>") == 1
    assert Page(html).tables[0][1][0].strip() == " ".join(text.split())


def test_no_control_character_of_a_text_reaches_the_report():
    text = "".join(map(chr, range(0x100)))
    for safe in (printable(text), fenced(text), cell(text)):
        assert not [c for c in safe if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    hidden = printable("a\u202eb\u2066c\u200fd\u061ce\u2028f\ufeffg\ud800h")
    assert hidden == "a�b�c�d�e�f�g�h"
    kept = "plain\ttext\n\nwith ünïcode ✓"
    assert printable(kept) == kept


def test_csv_and_terminal_table_agree_with_the_data(data, tmp_path):
    _, _, tables = written(data, tmp_path)
    rows, scores = tables["scores.csv"], data.evaluations.scores
    assert {(r["model"], r["seed"]) for r in rows} >= {("base", ""), ("rlt", "0"), ("rlt", "1")}
    assert [float(r["value"]) for r in rows] == [row["value"] for row in scores]
    _, *shown = opening(tmp_path).table
    assert [line[0] for line in shown] == ["base", "dataset", "rlt"]


def test_the_same_artifacts_give_the_same_bytes_and_toy_profiles_say_so(run, folder, tmp_path):
    render_report(report_of(*run), tmp_path / "again")
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    render_report(report_of(*run, profile="laptop"), tmp_path / "other")
    for name in ("report.md", "report.html"):
        assert TOY in (folder / name).read_text()
        assert TOY not in (tmp_path / "other" / name).read_text()


def test_a_run_with_little_in_it_has_a_report_too(tmp_path):
    store = Store(str(tmp_path / "store"))
    dropped = {"questions": [row("questions", question_id="q", split="train")], "dropped": []}
    made = {"dataset-prep": commit(store, "dataset-prep", dropped)}
    text, *_ = written(report_of(store, made, profile="paper-7b"), tmp_path / "report")
    assert "## Lineage" in text and "## Scores" not in text
    assert "Nothing yet" in " ".join(opening(tmp_path / "report").answer)


def test_students_that_are_all_alike_are_said_to_be(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = {
        name: manifest
        for name, manifest in sample_run(store, seeds=(0,), ranks=1).items()
        if name != "student-sft[rank-1]@0"
    }
    assert "not defined" in written(report_of(store, made), tmp_path / "report")[0]


def test_the_terminal_table_is_quick_to_import():
    code = (
        "import sys; import rlt_core.report.terminal; "
        "print({'numpy', 'scipy', 'matplotlib', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_seeds_without_a_question_in_common_have_an_interval_of_their_means():
    seeds = [{f"{seed}-{n}": float(seed) for n in range(5)} for seed in range(4)]
    found = mean_over_seeds(seeds)
    half = 3.182446 * np.std(range(4), ddof=1) / 2  # t of 3 degrees of freedom
    assert (found.value, found.questions) == (1.5, 20)
    assert (found.low, found.high) == pytest.approx((1.5 - half, 1.5 + half))
