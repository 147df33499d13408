"""An experiment's report: its numbers are those of the answers, and quotes say that they are."""

import csv
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from scipy import stats

from flows import pages
from flows.run_cli import _latest_report
from rlt_core.errors import UserError
from rlt_core.evaluation.comparisons import Ratio, difference, gain_ratio
from rlt_core.evaluation.crossed import crossed_means, method_score, question_means
from rlt_core.evaluation.intervals import Estimate, clustered_mean
from rlt_core.evaluation.overlap import overlap
from rlt_core.experiments import targets
from rlt_core.experiments.table_1 import OF_REPOSITORIES
from rlt_core.overrides import load_config
from rlt_core.report import gather, paper, render_report
from rlt_core.report.means import mean_contrast, mean_estimate
from rlt_core.report.scores import RANKED
from rlt_core.report.terminal import summary_table
from rlt_core.report.views import share
from rlt_core.stages import ReportConfig, TableRow
from rlt_core.store import Store
from tests.sample_store import commit, evaluated, rank_set, row, score_row

NASTY = 'x | <script>alert(1)</script> **b** `c` "q"'


def answers(rate, questions=24, samples=2, seed=0, hard=0.3):
    """(Q, N) answers of a model; questions differ in how hard they are."""
    rng = np.random.default_rng([seed, questions])
    level_Q = np.clip(rate + hard * np.linspace(-1, 1, questions), 0, 1)
    return (rng.random((questions, samples)) < level_Q[:, None]).astype(float)


def report_of(store, made, rows=(), profile="smol", title="table-1", **config):
    inputs = {name: (manifest, store.local(manifest)) for name, manifest in made.items()}
    shown = ReportConfig(profile=profile, title=title, rows=rows, **config)
    return gather(inputs, shown, "0123456789abcdef")


def written(data, folder):
    """(Markdown, HTML, name of a CSV -> its rows) of a rendered report."""
    render_report(data, folder)
    tables = {}
    for file in folder.glob("*.csv"):
        with file.open(newline="") as opened:
            tables[file.name] = list(csv.DictReader(opened))
    return (folder / "report.md").read_text(), (folder / "report.html").read_text(), tables


def lines_of(data, task):
    (table,) = [table for table in data.experiment.tables if table.task == task]
    return {line.row.model: line for line in table.lines}


# ---------------------------------------------------------------- the paper
def test_the_paper_s_numbers_are_whole_and_their_means_add_up():
    assert len(paper.NUMBERS) == 19
    for name, numbers in paper.NUMBERS.items():
        assert list(numbers) == [*paper.TASKS, "mean"]
        mean = sum(numbers[task] for task in paper.TASKS) / 3
        assert numbers["mean"] == pytest.approx(mean, abs=0.04), name
    assert set(paper.REPOSITORIES.values()) | paper.FROM_OTHERS <= paper.NUMBERS.keys()
    assert OF_REPOSITORIES.items() <= paper.REPOSITORIES.items()
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


class Tables(HTMLParser):
    """Rows of cells of every table of a page."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.tags, self.open = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.tables[-1][-1][-1] += data


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
    assert "paper 23.3" in shown and "did not run: not imported" in shown and "quoted" in shown


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


def test_the_mean_of_one_task_is_the_task():
    rng = np.random.default_rng(0)
    ours = rng.random((3, 20)) + np.array([[0.0], [0.3], [-0.2]])
    theirs = rng.random((4, 20))
    alone = crossed_means([ours, theirs]).contrast([1.0, -1.0])
    assert vars(mean_contrast([[ours, theirs]], [1.0, -1.0])) == pytest.approx(vars(alone))
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


# ---------------------------------------------------------------- overlaps
def test_overlaps_are_of_the_same_seed_and_the_paper_s_is_quoted(tmp_path):
    store = Store(str(tmp_path / "store"))
    given = {
        "countdown-base+rl": [answers(0.5, seed=1), answers(0.6, seed=2)],
        "countdown-dataset": [answers(0.4, seed=3), answers(0.5, seed=4)],
        "given": [answers(0.3, seed=5)],
    }
    made = {}
    for model, by_seed in given.items():
        for seed, correct_QN in enumerate(by_seed):
            made |= evaluated(
                store, model, {"countdown": correct_QN}, None if model == "given" else seed
            )
    pairs = (("countdown-base+rl", "countdown-dataset"), ("given", "countdown-dataset"))
    data = report_of(store, made, title="countdown", overlaps=pairs)
    assert [(line.ours, line.ours_seed, line.theirs_seed) for line in data.overlaps] == [
        ("countdown-base+rl", 0, 0), ("countdown-base+rl", 1, 1), ("given", None, 0),
        ("given", None, 1),
    ]  # fmt: skip
    by_hand = overlap(given["countdown-base+rl"][1], given["countdown-dataset"][1])
    assert data.overlaps[1].overlap == by_hand
    rates = [given[name][1].mean(axis=1) for name in pairs[0]]
    contained = (rates[0] * rates[1]).sum() / rates[0].sum()
    assert by_hand.measures["ours_in_theirs"].value == pytest.approx(contained)
    text, _, tables = written(data, tmp_path / "report")
    rows = tables["overlaps.csv"]
    assert len(rows) == 12 and {each["paper"] for each in rows[:6]} == {"> 98.5%"}
    assert {each["paper"] for each in rows[6:]} == {""}
    assert float(rows[3]["value"]) == by_hand.measures["ours_in_theirs"].value
    assert rows[3]["ceiling_first"] and rows[3]["first_seed"] == "1"
    assert text.count("> 98.5% (quoted)") == 6


# ---------------------------------------------------------------- two trace sets
@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    asked = [
        row("questions", question_id=f"q{n:03}", question=f"<b>{n}</b>", solution=f"`{n}`")
        for n in range(6)
    ]
    questions = commit(store, "dataset-prep", {"questions": asked, "dropped": []})
    made = {"dataset-prep": questions}
    rewards = {
        "dataset": [-3.0, -2.0, -2.0, None, -5.0, -1.0],
        "rlt": [-1.0, -2.0, -3.0, -1.0, -1.0, 0.0],
    }
    for name, values in rewards.items():
        stage = "trace-import" if name == "dataset" else "trace-generation"
        samples = (0,) if name == "dataset" else (0, 1)
        texts = [
            row("traces", trace_id=f"q{n:03}-{s}", question_id=f"q{n:03}", sample=s,
                text=f"{name} says <script>{n}-{s}</script> ```")
            for n in range(6) for s in samples
        ]  # fmt: skip
        generated = commit(
            store, f"{stage}[{name}]", {"traces": texts}, inputs={"questions": questions}
        )
        scores = [
            score_row(n, None if value is None else value + 0.5 * s, s, doubt=3.0 if n else None)
            for n, value in enumerate(values)
            for s in samples
        ]
        label = f"trace-scoring[{name}]"
        inputs = {"traces": generated, "questions": questions}
        made |= {
            generated.label: generated,
            label: commit(store, label, {"scores": scores}, seed=0, inputs=inputs),
        }
    return report_of(store, made, title="compare-traces", compared=("dataset", "rlt"))


def test_two_trace_sets_are_compared_question_by_question(traces, tmp_path):
    found = traces.compared
    assert found.questions == ["q000", "q001", "q002", "q004", "q005"]
    gains = np.array([2.0, 0.0, -1.0, 4.0, 1.0]) + 0.25
    reward = found.lines[0]
    assert reward.part == "reward" and reward.means[0] == pytest.approx(-13 / 5)
    assert reward.checkpoint.value == pytest.approx(gains.mean()) and reward.method is None
    assert (found.wins, found.ties, found.losses) == (4, 0, 1)
    assert found.sign_p == pytest.approx(stats.binomtest(4, 5).pvalue)
    doubt = next(line for line in found.lines if line.part == "doubt")
    assert doubt.checkpoint.questions == 4
    _, html, tables = written(traces, tmp_path)
    rows = tables["compared.csv"]
    assert [each["question_id"] for each in rows] == found.questions
    assert [float(each["reward_difference"]) for each in rows] == pytest.approx(gains.tolist())
    assert rows[0]["doubt[rlt]"] == "" and float(rows[1]["reward[rlt]"]) == pytest.approx(-1.75)
    assert "wins 4, ties 0 and loses 1" in html


def test_the_first_questions_stand_side_by_side_and_inert(traces, tmp_path):
    shown = traces.compared.texts
    assert [each.question_id for each in shown] == ["q000", "q001", "q002"]
    assert shown[0].sides[1].text == "rlt says <script>0-0</script> ```"
    assert shown[0].sides[1].parts["reward"] == -1.0
    text, html, _ = written(traces, tmp_path)
    assert "script" not in Tables(html).tags
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    blocks = [token.content.strip() for token in tokens if token.type == "fence"]
    assert "dataset says <script>2-0</script> ```" in blocks and "`1`" in blocks
    assert not [token for token in tokens if token.type == "html_block"]


# ---------------------------------------------------------------- sets of ranks
@pytest.mark.parametrize(
    ("name", "ranked"),
    [("rank-1", True), ("length-rank-12", True), ("token-matched-rank-3", True),
     ("r_ss-rank-1", True), ("rank_surprisal-rank-2", True), ("my-rank-1", False),
     ("rank-", False), ("rlt", False)],
)  # fmt: skip
def test_students_of_ranks_are_known_by_their_names(name, ranked):
    assert bool(RANKED.fullmatch(name)) is ranked


def test_sets_of_ranks_stand_in_one_table_and_one_figure(tmp_path):
    store = Store(str(tmp_path / "store"))
    sets = {
        "random": [0.5, 0.6, 0.5, 0.55],
        "length": [0.3, 0.5, 0.6, 0.8],
        "reward": [0.9, 0.7, 0.5, 0.2],
    }
    made = evaluated(store, "base", {"test": answers(0.2, questions=20, samples=1)})
    for name, rates in sets.items():
        made |= rank_set(store, name, rates, seeds=(0, 1))
    rows = (
        TableRow(name="Base", model="base", trained=False),
        TableRow(name="Rank 1", model="rank-1", baseline="base"),
    )
    data = report_of(store, made, rows, title="rank-ablation")
    assert [one.ranked_by for one in data.rank_sets] == ["reward", "length", "random"]
    assert data.ranks.ranked_by == "reward" and not data.curves
    metrics = made["rank-statistics[length]"].metrics
    pearson = data.rank_sets[1].statistic("pearson")
    assert (pearson.value, pearson.low) == (metrics["pearson"], metrics["pearson_low"])
    assert pearson.value < 0 < data.ranks.statistic("pearson").value
    assert pearson.by_seed == {seed: metrics[f"pearson@{seed}"] for seed in (0, 1)}
    values = [line.value for line in data.ranks.lines]
    assert data.ranks.spread == pytest.approx(values[0] - values[-1])
    assert lines_of(data, "test")["rank-1"].score.checkpoint.value == pytest.approx(values[0])
    text, html, tables = written(data, tmp_path / "report")
    for page in (text, html):
        assert "random (the noise floor)" in page.replace("\\", "")
    assert "](rank_sets.png)" in text and html.count("<img") == 3
    assert "> 0.89 (quoted)" in text and (tmp_path / "report" / "rank_sets.png").exists()
    found = {(each["ranked_by"], each["quantity"], each["rank"], each["seed"]): each
             for each in tables["ranks.csv"]}  # fmt: skip
    assert float(found["length", "pearson", "", ""]["low"]) == pearson.low
    assert float(found["length", "pearson", "", "1"]["value"]) == pearson.by_seed[1]
    assert len([key for key in found if key[1] == "score"]) == 3 * 4 * 3


# ---------------------------------------------------------------- where it is found
def test_reports_are_found_by_experiment_and_profile(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match="rlt run full-pipeline"):
        _latest_report(store, None, None)
    whole = commit(store, "report", {})
    table = commit(store, "report[table-1]", {})
    for profile in ("tiny", "smol"):
        store.set_ref(f"{profile}/report", whole.ref)
    store.set_ref("tiny/report[table-1]", table.ref)
    store.set_ref("tiny/reported", commit(store, "evaluation[reported]", {}).ref)
    assert _latest_report(store, None, "table-1").ref == table.ref
    assert _latest_report(store, "tiny", "full-pipeline").ref == whole.ref
    assert _latest_report(store, "smol", None).ref == whole.ref
    with pytest.raises(UserError, match=r"no report of table-2 .* full-pipeline, table-1"):
        _latest_report(store, None, "table-2")
    with pytest.raises(UserError, match="no report of table-1 of profile smol"):
        _latest_report(store, "smol", "table-1")


def test_every_report_of_a_profile_has_artifacts_of_its_own(monkeypatch, one_seed, tmp_path):
    *_, data = one_seed
    shown = []
    for kind in ("markdown", "table", "image"):
        monkeypatch.setattr(pages, f"create_{kind}_artifact", lambda **given: shown.append(given))
    render_report(data, tmp_path / "files")

    class Reports(Store):
        def local(self, manifest):
            return tmp_path / "files"

    store = Reports(str(tmp_path / "store"))
    for label in ("report", "report[table-1]", "report[table-2]"):
        pages.show_report(store, commit(store, label, {}))
    keys = [each["key"] for each in shown]
    assert len(set(keys)) == len(keys)
    assert {"tiny-report", "tiny-scores", "tiny-table-1-report", "tiny-table-2-table"} <= set(keys)
