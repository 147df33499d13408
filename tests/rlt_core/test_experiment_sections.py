"""The sections of an experiment's report beside its table, and where a report is shown."""

import numpy as np
import pytest
from prefect import artifacts

from flows import prefect_artifacts
from rlt_core.evaluation.overlap import overlap
from rlt_core.experiments import PAPER, targets
from rlt_core.overrides import load_config
from rlt_core.report.render import render_report
from rlt_core.report.scores import RANKED
from rlt_core.stages import TableRow
from rlt_core.store import Store
from tests.sample_report import answers, lines_of, report_of, written
from tests.sample_store import commit, evaluated, rank_set, row, score_row


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
    names = ("first", "first_seed", "second_seed")
    assert [tuple(row[name] for name in names) for row in data.overlaps[::3]] == [
        ("countdown-base+rl", 0, 0), ("countdown-base+rl", 1, 1), ("given", None, 0),
        ("given", None, 1),
    ]  # fmt: skip
    by_hand = overlap(given["countdown-base+rl"][1], given["countdown-dataset"][1])
    assert [row["measured"] for row in data.overlaps[3:6]] == list(by_hand.measures.values())
    rates = [given[name][1].mean(axis=1) for name in pairs[0]]
    contained = (rates[0] * rates[1]).sum() / rates[0].sum()
    assert by_hand.measures["ours_in_theirs"].value == pytest.approx(contained)
    text, _, tables = written(data, tmp_path / "report")
    rows = tables["overlaps.csv"]
    assert len(rows) == 12 and {each["paper"] for each in rows[:6]} == {"> 98.5%"}
    assert {each["paper"] for each in rows[6:]} == {""}
    assert float(rows[3]["value"]) == by_hand.measures["ours_in_theirs"].value
    assert rows[3]["first_seed"] == "1"
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
        config = {"reward": {"kl": "full"}}
        if name == "dataset":
            config["off_policy"] = "the data set's own"
        made |= {
            generated.label: generated,
            label: commit(store, label, {"scores": scores}, seed=0, inputs=inputs, config=config),
        }
    return report_of(store, made, title="compare-traces", compared=("dataset", "rlt"))


def test_two_trace_sets_are_compared_question_by_question(traces, tmp_path):
    found = traces.compared
    assert found["questions"] == ["q000", "q001", "q002", "q004", "q005"]
    gains = np.array([2.0, 0.0, -1.0, 4.0, 1.0]) + 0.25
    reward = found["lines"][0]
    assert reward["part"] == "reward" and reward["means"][0] == pytest.approx(-13 / 5)
    assert reward["checkpoint"].value == pytest.approx(gains.mean()) and reward["method"] is None
    assert found["wins"] == 4
    doubt = next(line for line in found["lines"] if line["part"] == "doubt")
    assert doubt["checkpoint"].questions == 4
    _, html, tables = written(traces, tmp_path)
    rows = tables["compared.csv"]
    assert [each["question_id"] for each in rows] == found["questions"]
    assert [float(each["reward_difference"]) for each in rows] == pytest.approx(gains.tolist())
    assert rows[0]["doubt[rlt]"] == "" and float(rows[1]["reward[rlt]"]) == pytest.approx(-1.75)
    assert "rlt has the better reward on 4 of them" in html
    assert found["estimators"] == ("full, off-policy: the data set's own", "full")
    assert "KL estimators: dataset full, off-policy: the data set" in html


# ---------------------------------------------------------------- sets of ranks
@pytest.mark.parametrize(
    ("name", "ranked"),
    [("rank-1", True), ("rank_surprisal-rank-12", True), ("my-rank-1", False), ("rank-", False)],
)
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
    assert [one["ranked_by"] for one in data.rank_sets] == ["reward", "length", "random"]
    assert data.ranks["ranked_by"] == "reward" and not data.curves
    metrics = made["rank-statistics[length]"].metrics
    pearson = data.rank_sets[1]["statistics"]["pearson"]
    assert (pearson["value"].value, pearson["value"].low) == (
        metrics["pearson"], metrics["pearson_low"],
    )  # fmt: skip
    by_reward = data.ranks["statistics"]["pearson"]["value"]
    assert pearson["value"].value < 0 < by_reward.value
    assert pearson["by_seed"] == {seed: metrics[f"pearson@{seed}"] for seed in (0, 1)}
    first = data.ranks["lines"][0]["value"].value
    assert lines_of(data, "test")["rank-1"]["value"].value == pytest.approx(first)
    text, html, tables = written(data, tmp_path / "report")
    for page in (text, html):
        assert "random (the noise floor)" in page.replace("\\", "")
    assert "](ranks.svg)" in text and html.count('class="chart"') == 5  # answer, scores, sets
    assert "> 0.89 (quoted)" in text and (tmp_path / "report" / "ranks.svg").exists()
    found = {
        (each["ranked_by"], each["quantity"], each["rank"]): each for each in tables["ranks.csv"]
    }
    shown = found["length", "pearson", ""]
    assert float(shown["low"]) == pearson["value"].low
    assert shown["by_seed"].endswith(f";1:{pearson['by_seed'][1]}")
    assert len([key for key in found if key[1] == "score"]) == 3 * 4


# ---------------------------------------------------------------- every experiment
@pytest.mark.parametrize("name", [one for one in PAPER if one != "compare-traces"])
def test_every_experiment_s_rows_are_filled_and_render(name, tmp_path, monkeypatch):
    """The report's own config, and invented answers of all that it reads."""
    monkeypatch.setattr("rlt_core.report.render.plot_figures", lambda *_: {})
    (report,) = targets(name, load_config("smoke", ["seeds=[3,4]"]))
    store, made = Store(str(tmp_path / "store")), {}
    for node in report.inputs.values():
        if node.stage.name == "evaluation":
            number = len(made)
            tasks = {
                task: answers(0.5, questions=6, samples=2, seed=number)
                for task in node.config.evaluation.tasks
            }
            made |= evaluated(store, node.variant, tasks, node.seed)
    given = vars(report.config)
    data = report_of(store, made, **given)
    assert data.is_toy
    assert {row["model"] for row in data.experiment.rows} == {
        row.model for row in report.config.rows
    }
    text, _, tables = written(data, tmp_path / "report")
    for row_ in report.config.rows:
        scored = [each for each in tables["table.csv"] if each["model"] == row_.model]
        assert bool(scored[0]["value"]) is not bool(row_.missing)
        assert bool(scored[0]["difference"]) is (row_.baseline is not None)
        assert bool(scored[0]["method_p"]) is (row_.baseline is not None and row_.trained)
    assert ("Primary contrast" in text) is (report.config.primary is not None)
    assert len(data.overlaps) == 3 * 2 * len(report.config.overlaps)


# ---------------------------------------------------------------- where it is shown
def test_every_report_of_a_profile_has_artifacts_of_its_own(monkeypatch, traces, tmp_path):
    shown = []
    for kind in ("markdown", "table", "image"):
        monkeypatch.setattr(
            artifacts, f"create_{kind}_artifact", lambda **given: shown.append(given)
        )
    render_report(traces, tmp_path / "files")
    (tmp_path / "files" / "reward.svg").write_bytes(b"picture")
    with (tmp_path / "files" / "report.md").open("a") as page:
        page.write("\n![rewards](reward.svg) ![elsewhere](../other.svg)\n")

    class Reports(Store):
        def intact(self, manifest):
            return tmp_path / "files"

    store = Reports(str(tmp_path / "store"))
    for label, experiment in (
        ("report", "full-pipeline"), ("report[table-1]", "table-1"), ("report[table-2]", "all"),
    ):  # fmt: skip
        report = commit(store, label, {})
        prefect_artifacts.show_parts(store, report, f"tiny {experiment}")
        prefect_artifacts.show_report(store, report, f"tiny {experiment}")
        shown_figures = (
            "![rewards](data:image/svg+xml;base64,cGljdHVyZQ==) ![elsewhere](../other.svg)"
        )
        assert shown_figures in shown[-1]["markdown"]
    keys = [each["key"] for each in shown]
    assert len(set(keys)) == len(keys)
    assert {
        "tiny-full-pipeline-report", "tiny-full-pipeline-scores", "tiny-table-1-report",
        "tiny-all-table-2-compared",
    } <= set(keys)  # fmt: skip
