"""An experiment's report: its numbers are those of the answers, and quotes say that they are."""

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy import stats

from rlt_core.evaluation.comparisons import (
    Ratio,
    cluster_bootstrap,
    difference,
    gain_ratio,
    permutation_p,
)
from rlt_core.evaluation.crossed import crossed_mean, method_score, question_means
from rlt_core.evaluation.intervals import Estimate, clustered_mean
from rlt_core.experiments import targets
from rlt_core.overrides import load_config
from rlt_core.report import paper
from rlt_core.report.statistics import joined, mean_estimate
from rlt_core.report.tables import gain_share
from rlt_core.stages import TableRow
from rlt_core.store import Store
from tests.sample_report import Page, answers, lines_of, opening, report_of, written
from tests.sample_store import commit, evaluated

NASTY = 'x | <script>alert(1)</script> **b** `c` "q"'


# ---------------------------------------------------------------- the paper
def test_the_paper_s_numbers_are_whole_and_their_means_add_up():
    assert len(paper.NUMBERS) == 19
    for name, numbers in paper.NUMBERS.items():
        assert list(numbers) == [*paper.TASKS, "mean"]
        mean = sum(numbers[task] for task in paper.TASKS) / 3
        assert numbers["mean"] == pytest.approx(mean, abs=0.04), name
    assert set(paper.REPOSITORIES.values()) | paper.FROM_OTHERS <= paper.NUMBERS.keys()
    assert paper.NUMBERS["RLT-7B"] == {
        "aime24": 23.3, "math_500": 82.8, "gpqa_diamond": 42.4, "mean": 49.5,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["table-1", "table-2"])
def test_every_row_that_repeats_the_paper_s_has_its_numbers(name):
    (report,) = targets(name, load_config("paper-7b", []))
    named = [row.paper for row in report.config.rows if row.paper]
    assert named and set(named) <= paper.NUMBERS.keys()


# ---------------------------------------------------------------- one seed
ROWS = (
    TableRow(name="Quoted", model="qwq", paper="QwQ-32B", trained=False, missing="not imported"),
    TableRow(name="Base model", model="base", paper="Qwen2.5-7B-Instruct", trained=False),
    TableRow(name="Data set", model="dataset", paper="Bespoke-7B", baseline="base"),
    TableRow(name="Solutions", model="solution-only", baseline="dataset"),
    TableRow(name=NASTY, model="rlt", paper="RLT-7B", baseline="dataset"),
    TableRow(name="Other", model="other", baseline="qwq"),
)
RATES = {"base": 0.3, "dataset": 0.6, "solution-only": 0.35, "rlt": 0.75, "other": 0.5}


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    """Two tasks, one of them a benchmark of the paper; one answer a question."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    given = {
        model: {
            "aime24": answers(rate, questions=30, samples=1, seed=number),
            "test": answers(rate, questions=40, samples=1, seed=number + 10),
        }
        for number, (model, rate) in enumerate(RATES.items())
    }
    made = {}
    for model, tasks in given.items():
        made |= evaluated(store, model, tasks, None if model == "base" else 0)
    return store, made, given, report_of(store, made, ROWS, primary="rlt")


@pytest.fixture(scope="module")
def pages(one_seed, tmp_path_factory):
    """The report's folder, Markdown, HTML and rows of CSV files."""
    folder = tmp_path_factory.mktemp("report")
    return folder, *written(one_seed[-1], folder)


def test_one_seed_is_scored_and_tested_as_by_hand(one_seed):
    _, made, given, data = one_seed
    assert list(data.experiment.tables) == ["aime24", "test", "mean"]
    for task in ("aime24", "test"):
        lines = lines_of(data, task)
        assert list(lines) == [row.model for row in ROWS]
        ours, theirs = given["rlt"][task][:, 0], given["dataset"][task][:, 0]
        line = lines["rlt"]
        assert line["value"] == clustered_mean(ours.tolist(), len(ours))
        assert line["method"] is None and line["method_difference"] is None
        assert line["by_seed"] == {0: pytest.approx(ours.mean())}
        assert (line["questions"], line["samples"]) == (len(ours), 1)
        assert line["difference"].value == pytest.approx((ours - theirs).mean())
        alone = int((ours > theirs).sum()), int((theirs > ours).sum())
        exact = stats.binomtest(alone[0], sum(alone)).pvalue
        assert line["p"] == pytest.approx(exact, abs=0.02)
        spread = (ours - theirs).std(ddof=1) / np.sqrt(len(ours))
        t = stats.t(len(ours) - 1)
        assert line["detectable"] == pytest.approx((t.ppf(0.975) + t.ppf(0.8)) * spread)
        assert line["model_keys"] == [made["student-sft[rlt]@0"].ref.key]
        assert line["evaluation_keys"] == [made["evaluation[rlt]@0"].ref.key]


def test_holm_is_over_the_rows_of_a_task_without_the_primary(one_seed):
    *_, data = one_seed
    for task in ("aime24", "test", "mean"):
        tested = {name: row for name, row in lines_of(data, task).items() if row["difference"]}
        assert set(tested) == {"dataset", "solution-only", "rlt"}
        assert tested["rlt"]["p_holm"] == tested["rlt"]["p"]
        both = sorted((row["p"], row["p_holm"]) for name, row in tested.items() if name != "rlt")
        (small, small_holm), (large, large_holm) = both
        assert small_holm == pytest.approx(min(1, 2 * small))
        assert large_holm == pytest.approx(min(1, max(large, 2 * small)))


def test_both_pages_show_the_same_tables_and_no_name_acts(pages):
    _, text, html, _ = pages
    page = Page(html)
    markdown = Page(MarkdownIt("commonmark").enable("table").render(text))
    assert "script" not in page.tags and "script" not in markdown.tags
    ours, theirs = (
        [[[" ".join(cell.split()) for cell in line] for line in table] for table in each.tables]
        for each in (page, markdown)
    )
    assert ours == theirs
    assert any(NASTY in line[0] for line in ours[0])
    assert all(len({len(line) for line in table}) == 1 for table in ours)


def test_quotes_are_beside_their_benchmark_only_and_are_marked(pages):
    _, text, html, tables = pages
    overview, _, aime, test, mean = Page(html).tables[:5]
    assert overview[0] == [
        "model", "aime24, the paper", "aime24, ours", "test, ours", "mean over tasks, ours",
        "difference", "against", "mean of its three benchmarks, the paper", "the paper's row",
        "did not run",
    ]  # fmt: skip
    by_name = {line[0]: line for line in overview[1:]}
    assert by_name[NASTY][1] == "23.3 (quoted)" and by_name[NASTY][7] == "49.50 (quoted)"
    assert by_name["Solutions"][1] == by_name["Solutions"][7] == "\u2013"
    assert "the paper" in aime[0] and "the paper" not in test[0] and "the paper" not in mean[0]
    for line in [*overview[1:], *aime[1:]]:
        assert line[1] == "\u2013" or "(quoted" in line[1]
    quoted = [each for each in tables["table.csv"] if each["paper_percent"]]
    assert {each["task"] for each in quoted} == {"aime24"}
    assert "Primary contrast, named before the run" in text and "; primary" in text


def test_a_row_that_did_not_run_has_the_quote_and_the_reason_only(one_seed, pages):
    store, made, _, data = one_seed
    line = lines_of(data, "aime24")["qwq"]
    assert line["value"] is line["difference"] is None and line["model_keys"] == []
    assert (line["paper_percent"], line["paper_from_others"]) == (50.0, True)
    assert lines_of(data, "aime24")["other"]["against"] is None, "its baseline did not run"
    for page in pages[1:3]:
        assert "did not run: not imported" in page
        assert "50.0 (quoted; the paper quotes it, too)" in page
    forgotten = (*ROWS, TableRow(name="Forgotten", model="forgotten"))
    with pytest.raises(ValueError, match="forgotten"):
        report_of(store, made, forgotten)


def test_the_csv_and_the_terminal_have_every_row(one_seed, pages):
    *_, data = one_seed
    folder, _, _, tables = pages
    assert set(tables) == {"scores.csv", "traces.csv", "table.csv"}
    rows = tables["table.csv"]
    assert len(rows) == 3 * len(ROWS)
    for found in rows:
        line = lines_of(data, found["task"])[found["model"]]
        assert (found["row"], found["missing"]) == (line["row"], line["missing"] or "")
        assert found["primary"] == str(found["model"] == "rlt")
        assert found["method_p"] == found["method_low"] == ""
        if line["value"] is None:
            assert found["value"] == found["low"] == found["evaluation_keys"] == ""
            continue
        assert float(found["value"]) == line["value"].value
        assert float(found["low"]) == line["value"].low
        assert found["by_seed"].endswith(f":{next(iter(line['by_seed'].values()))}")
        assert found["evaluation_keys"] == line["evaluation_keys"][0]
        if line["difference"]:
            assert float(found["difference_low"]) == line["difference"].low
            assert (float(found["p"]), float(found["p_holm"])) == (line["p"], line["p_holm"])
    names, *shown = opening(folder).table
    assert [line[0] for line in shown] == [row.name for row in ROWS]
    by_name = {line[0]: dict(zip(names, line, strict=True)) for line in shown}
    ours = lines_of(data, "aime24")["rlt"]["value"]
    assert by_name[NASTY]["aime24, ours"].endswith(f"[{100 * ours.low:.1f}, {100 * ours.high:.1f}]")
    assert by_name[NASTY]["aime24, the paper"] == "23.3 (quoted)"
    assert by_name["Quoted"]["did not run"] == "not imported"


# ---------------------------------------------------------------- several seeds
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """One task; one question that no one could grade under one seed, some single completions."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    given = {"base": np.array([answers(0.3, samples=3)])}
    for number, (model, rate) in enumerate({"dataset": 0.55, "rlt": 0.75}.items()):
        shift = {0: 0.0, 1: -0.12, 2: 0.1}
        given[model] = np.array(
            [answers(rate + shift[s], samples=3, seed=10 * number + s) for s in SEEDS]
        )
    given["rlt"][1, 5] = np.nan
    given["rlt"][0, 7, 0] = np.nan
    made = {}
    for model, correct_SQN in given.items():
        for seed, correct_QN in enumerate(correct_SQN):
            made |= evaluated(store, model, {"test": correct_QN}, None if model == "base" else seed)
    rows = tuple(one for one in ROWS if one.model in given)
    return store, made, given, report_of(store, made, rows, primary="rlt", profile="tiny-science")


def test_several_seeds_have_two_intervals_and_paired_differences(three_seeds):
    *_, given, data = three_seeds
    lines = lines_of(data, "test")
    values = {model: question_means(each) for model, each in given.items()}
    rlt = lines["rlt"]
    graded_Q = ~np.isnan(values["rlt"]).any(axis=0)
    assert graded_Q.sum() == 23 == rlt["questions"] and rlt["ungraded"] == 4
    assert rlt["value"].value == pytest.approx(values["rlt"][:, graded_Q].mean())
    assert rlt["method"] == method_score(given["rlt"])
    assert rlt["method"].value == pytest.approx(rlt["value"].value)
    assert rlt["method"].high - rlt["method"].low > rlt["value"].high - rlt["value"].low
    assert rlt["by_seed"][1] == pytest.approx(values["rlt"][1, graded_Q].mean())
    both = values["rlt"][:, graded_Q], values["dataset"][:, graded_Q]
    assert rlt["difference"].value == pytest.approx((both[0] - both[1]).mean())
    paired = difference(*both, paired_seeds=True)
    assert (rlt["method_difference"], rlt["method_p"]) == (paired.method, paired.method_p)
    assert paired.method != difference(*both).method, "pairing must matter here"
    alone = difference(values["dataset"], values["base"], theirs_trained=False)
    assert lines["dataset"]["method_difference"] == alone.method
    assert lines["base"]["method"] is None


def test_the_share_of_a_gain_is_that_of_the_data_set_s_student(three_seeds, tmp_path):
    *_, given, data = three_seeds
    lines = lines_of(data, "test")
    values = [question_means(given[model]) for model in ("rlt", "dataset", "base")]
    graded_Q = ~np.isnan(values[0]).any(axis=0)
    assert lines["rlt"]["gain"] == gain_ratio(*values)
    ours, theirs, base = (each[:, graded_Q].mean() for each in values)
    assert lines["rlt"]["gain"].value == pytest.approx((ours - base) / (theirs - base))
    assert lines["dataset"]["gain"] is None and lines["base"]["gain"] is None
    text, _, tables = written(data, tmp_path)
    assert "share of the data-set student's gain" in text
    (found,) = [each for each in tables["table.csv"] if each["model"] == "rlt"]
    assert float(found["share"]) == lines["rlt"]["gain"].value
    assert found["method_p_holm"] and found["by_seed"].count(";") == 2 and found["seeds"] == "3"
    assert "positive control of the pipeline at toy scale" in text


INF = float("inf")
NO_GAIN, LOSS = Estimate(0.0, -0.1, 0.1, 9), Estimate(-0.072, -0.13, -0.012, 200)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Ratio(0.9, ((0.75, 1.1),), NO_GAIN, False), "90% [75%, 110%]"),
        (Ratio(None, ((-INF, INF),), NO_GAIN, False),
         "not defined, unbounded: the data-set student's gain may be nothing"),
        # A model still worse than a student that lost would read as several times its gain.
        (Ratio(4.3, ((2.5, 25.0),), LOSS, False),
         "none: the data-set student is 7.2 points below its base"),
    ],
)  # fmt: skip
def test_a_share_is_a_number_only_where_there_was_a_gain(ratio, said):
    assert gain_share(ratio) == said


def test_ungraded_answers_are_no_score_and_no_zero(tmp_path):
    store = Store(str(tmp_path / "store"))
    nothing = np.full((4, 2), np.nan)
    made = {
        **evaluated(store, "base", {"test": answers(0.5, questions=4)}),
        **evaluated(store, "rlt", {"test": nothing}, 0),
    }
    rows = (
        TableRow(name="Base", model="base", trained=False),
        TableRow(name="RLT", model="rlt", baseline="base"),
    )
    data = report_of(store, made, rows, primary="rlt")
    line = lines_of(data, "test")["rlt"]
    assert line["value"] is line["difference"] is None
    text, _, tables = written(data, tmp_path / "report")
    assert "no graded answer" in text
    assert tables["table.csv"][1]["value"] == ""


def test_an_experiment_of_which_nothing_ran_has_a_table_too(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = {"dataset-prep": commit(store, "dataset-prep", {"questions": [], "dropped": []})}
    text, _, tables = written(report_of(store, made, ROWS[:1]), tmp_path / "report")
    assert "65.03 (quoted; the paper quotes it, too)" in text
    assert tables["table.csv"][0]["missing"] == "not imported"
    assert len(opening(tmp_path / "report").table) == 2


# ---------------------------------------------------------------- the mean over tasks
def test_the_mean_counts_every_task_the_same(one_seed):
    *_, given, data = one_seed
    line = lines_of(data, "mean")["rlt"]
    each = [lines_of(data, task)["rlt"]["value"] for task in ("aime24", "test")]
    assert line["value"].value == pytest.approx((each[0].value + each[1].value) / 2)
    below = np.sqrt((each[0].value - each[0].low) ** 2 + (each[1].value - each[1].low) ** 2) / 2
    assert line["value"].low == pytest.approx(line["value"].value - below)
    assert (line["questions"], line["samples"]) == (70, 1)
    gains = [(given["rlt"][task] - given["dataset"][task])[:, 0] for task in ("aime24", "test")]
    found = line["difference"]
    assert found.value == pytest.approx(np.mean([gain.mean() for gain in gains]))
    weighted_Q = np.concatenate([gain * 70 / (2 * len(gain)) for gain in gains])
    expected = cluster_bootstrap(weighted_Q)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert line["p"] == pytest.approx(permutation_p(weighted_Q)) and found.questions == 70


def test_tasks_may_differ_in_their_completions_a_question(tmp_path):
    store, made, given = Store(str(tmp_path / "store")), {}, {}
    for number, (model, rate) in enumerate(RATES.items()):
        given[model] = {
            "aime24": answers(rate, questions=30, samples=64, seed=number),
            "math_500": answers(rate, questions=50, samples=4, seed=number + 10),
        }
        made |= evaluated(store, model, given[model], None if model == "base" else 0)
    data = report_of(store, made, ROWS, primary="rlt")
    for task, n in (("aime24", 64), ("math_500", 4)):
        line = lines_of(data, task)["rlt"]
        assert line["samples"] == n
        assert line["value"].value == pytest.approx(given["rlt"][task].mean())
        gain = given["rlt"][task].mean() - given["dataset"][task].mean()
        assert line["difference"].value == pytest.approx(gain)
    both = lines_of(data, "mean")["rlt"]
    assert (both["questions"], both["samples"]) == (80, None)
    text, _, tables = written(data, tmp_path / "report")
    assert "30 × 64 × 1" in text and "50 × 4 × 1" in text and "80 × several × 1" in text  # noqa: RUF001
    assert {row["samples"] for row in tables["table.csv"] if row["value"]} == {"64", "4", ""}


def test_the_mean_of_one_task_is_the_task():
    values_SQ = np.random.default_rng(0).random((3, 20))
    assert joined([values_SQ]) == pytest.approx(values_SQ)
    assert joined([values_SQ], centred=True) == pytest.approx(values_SQ)
    one = Estimate(0.5, 0.3, 0.8, 9)
    assert vars(mean_estimate([one])) == pytest.approx(vars(one))


def test_the_variance_of_a_mean_is_that_inside_the_tasks():
    rng = np.random.default_rng(1)
    tasks = [level + rng.random((1, Q)) for level, Q in ((0.0, 30), (5.0, 200))]
    values_Q = joined(tasks, centred=True)[0]
    assert values_Q.mean() == pytest.approx(np.mean([one.mean() for one in tasks]))
    expected = sum(one.var() / one.size / 4 for one in tasks)
    assert values_Q.var() / values_Q.size == pytest.approx(expected)


def test_the_mean_s_interval_holds_where_a_seed_is_good_at_every_task():
    """Tasks whose seeds were taken as independent would cover far less."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        seed_S1 = rng.normal(scale=0.5, size=(3, 1))
        tasks = [
            seed_S1 + rng.normal(size=(1, Q)) + rng.normal(scale=0.5, size=(3, Q))
            for Q in (30, 50, 40)
        ]
        found = crossed_mean(joined(tasks, centred=True))
        covered += found.low <= 0 <= found.high
    assert covered >= 270
