"""The first lines of a report and its figures: they say what the tables and the store say."""

import base64
import csv
import io
import re
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlt_core.report.answer import contrasts
from rlt_core.report.figures import plot_figures
from rlt_core.report.gather import ReportData
from rlt_core.report.svg import Figure
from rlt_core.report.texts import number, points
from rlt_core.sql.views import connect
from rlt_core.stages import ReportConfig, TableRow
from rlt_core.store import Store
from tests import sample_report
from tests.sample_report import Page, answers, opening, written
from tests.sample_store import (
    commit,
    evaluated,
    rank_set,
    sample_run,
    scored_training_traces,
    step_rows,
)

NASTY = 'x | <script>alert(1)</script> </svg> **b** `c` "q"'
report_of = partial(sample_report.report_of, title="full-pipeline")


def said(data, folder):
    """The answer as the page has it."""
    written(data, folder)
    return opening(folder).answer[1]


def models(store, rates, seeds=(0,), tasks=("test",)):
    made = {}
    for number_, (model, rate) in enumerate(rates.items()):
        for seed in (None,) if model == "base" else seeds:
            given = {
                task: answers(rate, questions=60, seed=10 * number_ + (seed or 0)) for task in tasks
            }
            made |= evaluated(store, model, given, seed)
    return made


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_the_answer_has_the_interval_of_the_table_and_says_what_it_holds_for(tmp_path, seeds):
    store = Store(str(tmp_path / "store"))
    made = models(store, {"base": 0.2, "dataset": 0.4, "rlt": 0.8}, seeds)
    data = report_of(store, made)
    text, html, _ = written(data, tmp_path / "report")
    pair = contrasts(data)[0].difference
    shown = points(pair).replace(" ", " points ", 1)
    lines = opening(tmp_path / "report").answer
    for page in (text, Page(html).text, " ".join(lines)):
        assert shown in page
        several = "3 were trained" in page
        assert several is (len(seeds) > 1)
        assert ("not for other training seeds" in page) is not several
        assert ("Yes, with the seed of this run." in page) is not several
    assert [line.partition(".")[0] for line in lines] == ["Asked", "Answer", "How certain", "Cost"]
    assert text.index(shown) < text.index("## ") and html.index(shown[:6]) < html.index("<h2>")


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [
        ({"dataset": 0.3, "rlt": 0.8}, "Yes"),
        ({"dataset": 0.8, "rlt": 0.3}, "No, the reverse"),
        ({"dataset": 0.5, "rlt": 0.52}, "Undecided"),
        ({"dataset": -9.0, "rlt": -9.0}, "No difference"),
        ({"base": 0.2, "dataset": 0.9}, "Not answered:"),
        ({"base": 0.2, "rlt": 0.9}, "Not answered:"),
        ({"rlt": 0.5}, "Nothing yet"),
    ],
)
def test_the_verdict_is_that_of_the_interval(tmp_path, rates, verdict):
    store = Store(str(tmp_path / "store"))
    sentence = said(report_of(store, models(store, rates)), tmp_path / "report")
    assert verdict in sentence and ("Yes" in sentence) is (verdict == "Yes")


def test_the_primary_row_is_the_answer_of_an_experiment_and_names_are_inert(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = models(store, {"base": 0.2, "dataset": 0.5, "rlt": 0.9})
    rows = (
        TableRow(name="Base", model="base", trained=False),
        TableRow(name="Data set", model="dataset", baseline="base"),
        TableRow(name=NASTY, model="rlt", baseline="dataset"),
    )
    data = report_of(store, made, rows, primary="rlt", title="table-1")
    (primary,) = [row for row in data.experiment.last if row["primary"]]
    assert contrasts(data)[0].difference == primary["difference"]
    text, html, _ = written(data, tmp_path / "report")
    page = Page(html)
    assert "script" not in page.tags and "b" not in page.tags
    assert page.tags.count("svg") == html.count("</svg>") > 0
    for shown in (page.text, opening(tmp_path / "report").answer[1]):
        assert " ".join(NASTY.split()).replace("**", "").replace("`", "") in shown.replace(
            "**", ""
        ).replace("`", "")
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_the_mean_over_tasks_is_the_answer_where_there_are_several(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = models(store, {"dataset": 0.4, "rlt": 0.9}, tasks=("aime24", "test"))
    rows = (
        TableRow(name="Data set", model="dataset"),
        TableRow(name="RLT", model="rlt", baseline="dataset"),
    )
    data = report_of(store, made, rows, primary="rlt", title="table-1")
    sentence = said(data, tmp_path / "report")
    assert "on the mean over tasks" in sentence and "Yes" in sentence
    with connect(store) as connection:
        sql = plot_figures(data, contrasts(data))["answer"].sql
        tasks = {row["task"] for row in connection.sql(sql).to_arrow_table().to_pylist()}
    assert tasks == {"aime24", "test"}


def test_ranks_are_the_answer_where_they_are_the_question(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = models(store, {"base": 0.2}) | rank_set(store, "reward", [0.9, 0.6, 0.3])
    base = (TableRow(name="Base", model="base", trained=False),)
    data = report_of(store, made, base, title="rank-ablation")
    assert "rank 1 by reward against students of rank 3" in said(data, tmp_path / "report")
    difference = contrasts(data)[0].difference
    assert difference.value == pytest.approx(0.6) and difference.low > 0.3


def test_an_alarm_of_several_artifacts_is_one_line(tmp_path):
    store = Store(str(tmp_path))
    flat = {"alarm_zero_variance": 1.0}
    steps = {"train_steps": step_rows("teacher-grpo", [-1.0] * 12)}
    made = {
        f"teacher-grpo@{seed}": commit(store, "teacher-grpo", steps, seed=seed, metrics=flat)
        for seed in range(5)
    }
    (alarm,) = report_of(store, made).alarms
    assert alarm.startswith("teacher-grpo@0, teacher-grpo@1, teacher-grpo@2 and 2 more: in its")


def test_an_unfinished_run_says_so_first(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = models(store, {"base": 0.2, "rlt": 0.5})
    inputs = {name: (one, store.intact(one)) for name, one in made.items()}
    config = ReportConfig(profile="laptop", title="full-pipeline")
    written(ReportData(inputs, config, "0" * 16, store, of=9), tmp_path / "report")
    found = opening(tmp_path / "report")
    assert found.title == "full-pipeline, unfinished: 4 of 9 nodes"
    assert "against" in found.answer[1]


def test_a_task_that_tells_no_models_apart_is_one_line(tmp_path):
    store = Store(str(tmp_path / "store"))
    rates = {"base": -9.0, "dataset": -9.0, "rlt": -9.0, "rlt+rl": -9.0}
    made = {}
    for number_, model in enumerate(rates):
        given = {
            "test": answers(0.2 * number_, questions=40), "countdown": np.zeros((30, 2))
        }  # fmt: skip
        made |= evaluated(store, model, given, None if model == "base" else 0)
    text, html, _ = written(report_of(store, made), tmp_path / "report")
    (line,) = [line for line in text.splitlines() if "countdown" in line]
    assert "every model has the same score, 0.0 [" in line and "30 questions" in line
    assert not [row for table in Page(html).tables for row in table if "countdown" in row]


def test_scores_that_are_all_alike_are_in_the_table(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = models(store, {"base": -9.0, "dataset": -9.0, "rlt": -9.0}, tasks=("test", "countdown"))
    written(report_of(store, made), tmp_path / "report")
    _, *rows = opening(tmp_path / "report").table
    assert len(rows) == 6 and {row[1] for row in rows} == {"test", "countdown"}


def test_there_is_one_format_of_numbers(tmp_path):
    store = Store(str(tmp_path / "store"))
    _, html, _ = written(report_of(store, sample_run(store)), tmp_path / "report")
    cells = [cell for table in Page(html).tables for row in table for cell in row]
    numbers = [each for cell in cells for each in re.findall(r"-?\d+\.\d+(?:e-\d+)?", cell)]
    assert len(numbers) > 50
    for each in numbers:
        digits = each.lstrip("-0.").replace(".", "")
        assert len(digits.partition("e")[0]) <= 4, each  # 123.4 of a percentage
    written_ = {1234.5: "1234", 123.4: "123", 12.345: "12.3", -1.2345: "-1.23", 0.12345: "0.123",
                0.0: "0", 1.2e-5: "1.2e-05", float("nan"): "not finite"}  # fmt: skip
    assert {value: number(value) for value in written_} == written_


# ---------------------------------------------------------------- figures
def test_the_sql_of_a_figure_reads_what_it_shows_and_its_download_has_it(tmp_path):
    store = Store(str(tmp_path / "store"))
    data = report_of(store, sample_run(store, seeds=(0,)))
    figures = plot_figures(data, contrasts(data))
    assert {"answer", "scores", "reward", "loss", "ranks"} == set(figures)
    with connect(store) as connection:
        found = {
            name: connection.sql(figure.sql).to_arrow_table().to_pylist()
            for name, figure in figures.items()
        }
    scores = {row["label"]: row["score"] for row in found["scores"]}
    for row in figures["scores"].rows:
        assert row["value"] == pytest.approx(scores[f"evaluation[{row['series']}]"])
    values = {row["label"]: row["score"] for row in found["answer"]}
    assert figures["answer"].rows[0]["value"] == pytest.approx(
        values["evaluation[rlt]"] - values["evaluation[dataset]"]
    )
    assert [row["value"] for row in found["ranks"]] == [
        row["value"] for row in figures["ranks"].rows if row["series"] == "students"
    ]
    rewards = [row["value"] for row in figures["reward"].rows if row["chart"].endswith("reward")]
    assert rewards[-1] == pytest.approx(np.mean([row["reward"] for row in found["reward"][-5:]]))
    _, html, _ = written(data, tmp_path / "report")
    links = re.findall(r'download="(\w+).csv" href="data:text/csv;base64,([^"]*)"', html)
    assert {name for name, _ in links} == set(figures)
    for name, content in links:
        rows = list(csv.DictReader(io.StringIO(base64.b64decode(content).decode())))
        assert len(rows) == len(figures[name].rows)
        assert rows[0]["value"] == str(figures[name].rows[0]["value"])


def line(values, **options):
    """A chart of one line."""
    rows = [
        {
            "chart": "t",
            "series": "a",
            "x": x,
            "value": y,
            "low": y - 0.1,
            "high": y + 0.1,
            "color": 0,
        }
        for x, y in enumerate(values, 1)
    ]
    return Figure("f", "caption", rows, "select", x_label="step", **options).svgs()[0]


def test_a_line_does_not_leave_the_data():
    scores = [0.96, 0.94, 0.9, 0.3, 0.02, 0.01]
    drawn_chart = line(scores, unit="percent", bounds=(0.0, 1.0))
    numbers = re.findall(r' (?:x|y|x1|x2|y1|y2|cx|cy)="([-\d.]+)"', drawn_chart)
    assert all(-1 <= float(each) <= 360 for each in numbers)
    (path,) = re.findall(r'points="([^"]*)"', drawn_chart)
    drawn = [tuple(map(float, each.split(","))) for each in path.split()]
    assert len(drawn) == len(scores) and drawn == sorted(drawn)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)


@pytest.mark.parametrize("values", [[float("nan")], [1.0], [2.0, float("inf"), 2.0, 3.0]])
def test_any_values_can_be_drawn(values):
    drawn = line(values)
    assert "nan" not in drawn and "inf" not in drawn.replace("no finite value", "")


def test_a_long_training_is_drawn_with_few_points_and_the_same_mean(tmp_path):
    store = Store(str(tmp_path))
    rewards = np.sin(np.arange(5000) / 50)
    made = {"teacher-grpo@0": commit(store, "teacher-grpo", {
        "train_steps": step_rows("teacher-grpo", rewards.tolist())}, seed=0)}  # fmt: skip
    data = report_of(store, made)
    rows = plot_figures(data, contrasts(data))["reward"].rows
    assert len(rows) < 1000 and rows[-1]["x"] == 5000
    assert np.mean([row["value"] for row in rows]) == pytest.approx(rewards.mean(), abs=0.02)


# ---------------------------------------------------------------- explanations
def test_three_explanations_have_their_tokens_and_lead_to_the_explorer(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = sample_run(store, seeds=(0,))
    kept = {name: one for name, one in made.items() if "held-out" not in name}
    scored = {one.label: one for one in scored_training_traces(store, made)}
    text, html, _ = written(report_of(store, kept | scored), tmp_path / "report")
    page = Page(html)
    assert page.tags.count("div") > 0 and html.count('class="heat"') == 6
    for rank in ("Rank 1 of 4", "Rank 3 of 4", "Rank 4 of 4"):
        assert rank in page.text and rank in text
    key = scored["trace-scoring[sft]"].ref.key
    assert f"<code>rlt traces --page trace/{key}/q004-" in html and "127.0.0.1" not in html
    assert "type `rlt traces --page question/q004`" in text and "script" not in page.tags
    assert "let us see: 10 or" in text and "<span" not in text


def test_explanations_of_an_older_version_are_shown(tmp_path):
    """`scores` had fewer columns."""
    store = Store(str(tmp_path / "store"))
    made = sample_run(store, seeds=(0,))
    for one in scored_training_traces(store, made):
        made[one.label] = one
    inputs = {n: (one, store.intact(one)) for n, one in made.items() if "held-out" not in n}
    (manifest, folder) = inputs["trace-scoring[sft]"]
    older = tmp_path / "older"
    for file in folder.rglob("*.parquet"):
        (older / "scores").mkdir(parents=True, exist_ok=True)
        table = pq.read_table(file).drop_columns(["think_span_ends", "think_kl"])
        pq.write_table(table, older / "scores" / file.name)
    inputs["trace-scoring[sft]"] = (manifest, older)
    config = ReportConfig(profile="laptop", title="full-pipeline")
    data = ReportData(inputs, config, "0" * 16, store)
    assert [bool(each["found"].explanation) for each in data.explanations["shown"]] == [True] * 3
