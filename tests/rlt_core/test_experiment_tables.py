"""An experiment's report: its numbers are those of the answers, and quotes say that they are."""

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from scipy import stats

from rlt_core.evaluation.comparisons import Ratio, difference, gain_ratio
from rlt_core.evaluation.crossed import crossed_means, method_score, question_means
from rlt_core.evaluation.intervals import Estimate, clustered_mean
from rlt_core.experiments import targets
from rlt_core.overrides import load_config
from rlt_core.report import paper
from rlt_core.report.render import render_report
from rlt_core.report.statistics import mean_contrast, mean_estimate
from rlt_core.report.tables import share
from rlt_core.report.terminal import summary_table
from rlt_core.stages import TableRow
from rlt_core.store import Store
from tests.sample_report import Tables, answers, lines_of, report_of, written
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


def test_one_seed_is_scored_and_tested_as_by_hand(one_seed):
    _, made, given, data = one_seed
    assert [table.task for table in data.experiment.tables] == ["aime24", "test", "mean"]
    for task in ("aime24", "test"):
        lines = lines_of(data, task)
        assert list(lines) == [row.model for row in ROWS]
        ours, theirs = given["rlt"][task][:, 0], given["dataset"][task][:, 0]
        line = lines["rlt"]
        assert line.score.checkpoint == clustered_mean(ours.tolist(), len(ours))
        assert line.score.method is None and line.against.method is None
        assert line.score.by_seed == {0: pytest.approx(ours.mean())}
        assert (line.score.questions, line.score.samples) == (len(ours), 1)
        assert line.against.checkpoint.difference.value == pytest.approx((ours - theirs).mean())
        alone = int((ours > theirs).sum()), int((theirs > ours).sum())
        exact = stats.binomtest(alone[0], sum(alone)).pvalue
        assert line.against.mcnemar == pytest.approx(exact)
        assert line.against.checkpoint.p == pytest.approx(exact, abs=0.02)
        spread = (ours - theirs).std(ddof=1) / np.sqrt(len(ours))
        t = stats.t(len(ours) - 1)
        assert line.against.detectable == pytest.approx((t.ppf(0.975) + t.ppf(0.8)) * spread)
        assert line.models == (made["student-sft[rlt]@0"].ref.key,)
        assert line.evaluations == (made["evaluation[rlt]@0"].ref.key,)


def test_holm_is_over_the_rows_of_a_task_without_the_primary(one_seed):
    *_, data = one_seed
    for task in ("aime24", "test", "mean"):
        tested = {
            model: line.against.checkpoint
            for model, line in lines_of(data, task).items()
            if line.against
        }
        assert set(tested) == {"dataset", "solution-only", "rlt"}
        assert tested["rlt"].holm == tested["rlt"].p
        small, large = sorted((tested["dataset"], tested["solution-only"]), key=lambda one: one.p)
        assert small.holm == pytest.approx(min(1, 2 * small.p))
        assert large.holm == pytest.approx(min(1, max(large.p, 2 * small.p)))


def test_a_row_that_did_not_run_has_the_quote_and_the_reason_only(one_seed, tmp_path):
    *_, data = one_seed
    line = lines_of(data, "aime24")["qwq"]
    assert (line.score, line.against, line.models) == (None, None, ())
    assert line.quote.percent == 50.0 and line.quote.from_others
    assert lines_of(data, "aime24")["other"].against is None, "its baseline did not run"
    text, html, tables = written(data, tmp_path)
    for page in (text, html):
        assert "did not run: not imported" in page
        assert "50.0 (quoted; the paper quotes it, too)" in page
    (found,) = [each for each in tables["table.csv"] if each["model"] == "qwq" and
                each["task"] == "aime24"]  # fmt: skip
    assert found["missing"] == "not imported" and found["value"] == found["evaluation_keys"] == ""
    assert (found["paper_percent"], found["paper_from_others"]) == ("50.0", "True")


def test_both_pages_show_the_same_tables_and_no_name_acts(one_seed, tmp_path):
    *_, data = one_seed
    text, html, _ = written(data, tmp_path)
    page = Tables(html)
    markdown = Tables(MarkdownIt("commonmark").enable("table").render(text))
    assert "script" not in page.tags and "script" not in markdown.tags
    ours = [[[" ".join(cell.split()) for cell in line] for line in t] for t in page.tables]
    theirs = [[[" ".join(cell.split()) for cell in line] for line in t] for t in markdown.tables]
    assert ours == theirs
    assert any(NASTY in line[0] for line in ours[0])
    assert all(len({len(line) for line in table}) == 1 for table in ours)


def test_quotes_stand_beside_their_benchmark_only_and_are_marked(one_seed, tmp_path):
    *_, data = one_seed
    text, html, tables = written(data, tmp_path)
    overview, aime, test, mean = Tables(html).tables[:4]
    assert overview[0] == [
        "row", "aime24, the paper", "aime24, ours", "test, ours", "mean over tasks, ours",
        "mean of its three benchmarks, the paper", "the paper's row", "did not run",
    ]  # fmt: skip
    by_name = {line[0]: line for line in overview[1:]}
    assert by_name[NASTY][1] == "23.3 (quoted)" and by_name[NASTY][5] == "49.50 (quoted)"
    assert by_name["Solutions"][1] == by_name["Solutions"][5] == "\u2013"
    assert "the paper" in aime[0] and "the paper" not in test[0] and "the paper" not in mean[0]
    for line in [*overview[1:], *aime[1:]]:
        assert line[1] == "\u2013" or "(quoted" in line[1]
    quoted = [each for each in tables["table.csv"] if each["paper_percent"]]
    assert {each["task"] for each in quoted} == {"aime24"}
    assert "Primary contrast, named before the run" in text and "; primary" in text


def test_the_csv_has_every_row_and_number_unrounded(one_seed, tmp_path):
    *_, data = one_seed
    _, _, tables = written(data, tmp_path)
    assert set(tables) == {"scores.csv", "traces.csv", "table.csv"}
    rows = tables["table.csv"]
    assert len(rows) == 3 * len(ROWS)
    for found in rows:
        line = lines_of(data, found["task"])[found["model"]]
        assert found["row"] == line.row.name
        if line.score:
            assert float(found["value"]) == line.score.checkpoint.value
            assert float(found["low"]) == line.score.checkpoint.low
            assert found["by_seed"].endswith(f":{next(iter(line.score.by_seed.values()))}")
            assert found["evaluation_keys"] == line.evaluations[0]
        if line.against:
            tested = line.against.checkpoint
            assert float(found["difference_low"]) == tested.difference.low
            assert (float(found["p"]), float(found["p_holm"])) == (tested.p, tested.holm)
        assert found["method_p"] == found["method_low"] == ""
        assert found["primary"] == str(found["model"] == "rlt")


def test_the_terminal_shows_rows_by_tasks_with_the_paper_s_below(one_seed, tmp_path):
    *_, data = one_seed
    render_report(data, tmp_path)
    table = summary_table(tmp_path)
    assert table.row_count == len(ROWS)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    shown = console.export_text()
    line = lines_of(data, "aime24")["rlt"].score.checkpoint
    assert f"[{100 * line.low:.1f}, {100 * line.high:.1f}]" in shown
    assert "paper 23.3" in shown and "did not run" in shown and "quoted" in shown


def test_a_row_without_its_evaluation_is_refused(one_seed):
    store, made, *_ = one_seed
    rows = (*ROWS, TableRow(name="Forgotten", model="forgotten"))
    with pytest.raises(ValueError, match="forgotten"):
        report_of(store, made, rows)


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
    score = lines["rlt"].score
    graded_Q = ~np.isnan(values["rlt"]).any(axis=0)
    assert graded_Q.sum() == 23 == score.questions and score.ungraded == 4
    assert score.checkpoint.value == pytest.approx(values["rlt"][:, graded_Q].mean())
    assert score.method == method_score(given["rlt"])
    assert score.method.value == pytest.approx(score.checkpoint.value)
    assert score.method.high - score.method.low > score.checkpoint.high - score.checkpoint.low
    assert score.by_seed[1] == pytest.approx(values["rlt"][1, graded_Q].mean())
    against = lines["rlt"].against
    both = values["rlt"][:, graded_Q], values["dataset"][:, graded_Q]
    assert against.checkpoint.difference.value == pytest.approx((both[0] - both[1]).mean())
    paired = difference(*both, paired_seeds=True)
    assert against.method.difference == paired.method and against.method.p == paired.method_p
    assert paired.method != difference(*both).method, "pairing must matter here"
    assert against.mcnemar is None
    base = lines["dataset"].against
    assert (
        base.method.difference
        == difference(values["dataset"], values["base"], theirs_trained=False).method
    )
    assert lines["base"].score.method is None


def test_the_share_of_a_gain_is_that_of_the_data_set_s_student(three_seeds, tmp_path):
    *_, given, data = three_seeds
    lines = lines_of(data, "test")
    values = [question_means(given[model]) for model in ("rlt", "dataset", "base")]
    graded_Q = ~np.isnan(values[0]).any(axis=0)
    assert lines["rlt"].share == gain_ratio(*values)
    ours, theirs, base = (each[:, graded_Q].mean() for each in values)
    assert lines["rlt"].share.value == pytest.approx((ours - base) / (theirs - base))
    assert lines["dataset"].share is None and lines["base"].share is None
    text, _, tables = written(data, tmp_path)
    assert "share of the data-set student's gain" in text
    (found,) = [each for each in tables["table.csv"] if each["model"] == "rlt"]
    assert float(found["share"]) == lines["rlt"].share.value
    assert found["method_p_holm"] and found["by_seed"].count(";") == 2 and found["seeds"] == "3"
    assert found["mcnemar_p"] == ""
    assert "positive control of the pipeline at toy scale" in text


def test_a_share_without_an_end_is_said_in_words():
    nothing = Estimate(0.0, -0.1, 0.1, 9)
    inf = float("inf")
    bounded = Ratio(0.9, ((0.75, 1.1),), nothing, False)
    rays = Ratio(0.9, ((-inf, -2.0), (0.5, inf)), nothing, False)
    everything = Ratio(None, ((-inf, inf),), nothing, False)
    assert share(bounded) == "90% [75%, 110%]"
    assert "all but -200% to 50% is possible" in share(rays) and "may be nothing" in share(rays)
    assert share(everything).startswith("not defined; any share is possible")


def test_of_a_loss_there_is_no_share():
    """Worse still than a student who lost would read as several times its gain."""
    loss = Ratio(4.3, ((2.5, 25.0),), Estimate(-0.072, -0.13, -0.012, 200), False)
    assert share(loss) == "none: the data-set student is 7.2 points below its base"


def test_what_could_not_be_graded_is_no_score_and_no_zero(tmp_path):
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
    assert (line.score, line.against) == (None, None)
    text, _, tables = written(data, tmp_path / "report")
    assert "no graded answer" in text
    assert tables["table.csv"][1]["value"] == ""


def test_an_experiment_of_which_nothing_ran_has_a_table_too(tmp_path):
    store = Store(str(tmp_path / "store"))
    made = {"dataset-prep": commit(store, "dataset-prep", {"questions": [], "dropped": []})}
    text, _, tables = written(report_of(store, made, ROWS[:1]), tmp_path / "report")
    assert "65.03 (quoted; the paper quotes it, too)" in text
    assert tables["table.csv"][0]["missing"] == "not imported"
    assert summary_table(tmp_path / "report").row_count == 1


# ---------------------------------------------------------------- the mean over tasks
def test_the_mean_counts_every_task_the_same(one_seed):
    *_, given, data = one_seed
    line = lines_of(data, "mean")["rlt"]
    each = [lines_of(data, task)["rlt"].score.checkpoint for task in ("aime24", "test")]
    assert line.score.checkpoint.value == pytest.approx((each[0].value + each[1].value) / 2)
    below = np.sqrt((each[0].value - each[0].low) ** 2 + (each[1].value - each[1].low) ** 2) / 2
    assert line.score.checkpoint.low == pytest.approx(line.score.checkpoint.value - below)
    assert (line.score.questions, line.score.samples) == (70, 1)
    found = line.against.checkpoint.difference
    gains = [given["rlt"][task] - given["dataset"][task] for task in ("aime24", "test")]
    assert found.value == pytest.approx(np.mean([gain.mean() for gain in gains]))
    variances = [gain.var(ddof=1) / len(gain) / 4 for gain in gains]
    degrees = sum(variances) ** 2 / sum(
        v**2 / (len(g) - 1) for v, g in zip(variances, gains, strict=True)
    )
    half = stats.t(degrees).ppf(0.975) * np.sqrt(sum(variances))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert found.questions == 70


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
        assert line.score.samples == n
        assert line.score.checkpoint.value == pytest.approx(given["rlt"][task].mean())
        gain = given["rlt"][task].mean() - given["dataset"][task].mean()
        assert line.against.checkpoint.difference.value == pytest.approx(gain)
    both = lines_of(data, "mean")["rlt"].score
    assert (both.questions, both.samples) == (80, None)
    text, _, tables = written(data, tmp_path / "report")
    assert "30 × 64 × 1" in text and "50 × 4 × 1" in text and "80 × several × 1" in text  # noqa: RUF001
    assert {row["samples"] for row in tables["table.csv"] if row["value"]} == {"64", "4", ""}
    assert {(line.metric, line.samples) for line in data.totals} == {("avg@64", 64), ("avg@4", 4)}


def test_the_mean_of_one_task_is_the_task():
    rng = np.random.default_rng(0)
    ours = rng.random((3, 20)) + np.array([[0.0], [0.3], [-0.2]])
    theirs = rng.random((4, 20))
    alone = crossed_means([ours, theirs]).contrast([1.0, -1.0])
    found = mean_contrast([[ours, theirs]], [1.0, -1.0])
    assert vars(found.interval()) == pytest.approx(vars(alone.interval()))
    assert found.p_values() == pytest.approx(alone.p_values())
    one = Estimate(0.5, 0.3, 0.8, 9)
    assert vars(mean_estimate([one])) == pytest.approx(vars(one))


def test_the_mean_s_interval_holds_where_a_seed_is_good_at_every_task():
    """Tasks whose seeds were taken as independent would cover far less."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        seed_S1 = rng.normal(scale=0.5, size=(3, 1))
        tasks = [
            [seed_S1 + rng.normal(size=(1, Q)) + rng.normal(scale=0.5, size=(3, Q))]
            for Q in (30, 50, 40)
        ]
        found = mean_contrast(tasks, [1.0]).interval()
        covered += found.low <= 0 <= found.high
    assert covered >= 270


def test_a_question_more_or_less_leaves_no_interval():
    tasks = [[np.array([[1.0]])], [np.array([[0.0, 1.0]])]]
    found = mean_contrast(tasks, [1.0])
    assert found.value == pytest.approx(0.75) and found.interval().low == -np.inf
