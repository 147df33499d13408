"""docs/sql.md: its columns are the views', its queries give the right rows.

What a query must give is worked out here in Python, from the rows that the store holds.
"""

import math
import re
from collections import Counter, defaultdict
from statistics import correlation, mean

import pytest

from rlt_core.config import RewardSpec
from rlt_core.models import tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows
from rlt_core.sql.schemas import SQL_TYPES, VIEWS, reference
from rlt_core.sql.views import connect
from rlt_core.store import Store
from tests.cookbook import PAGE, queries
from tests.sample_store import commit, sample_run, score_row, scored_training_traces

QUERIES = queries()


def fill(store):
    """A run of two seeds, and artifacts of older settings that no name stands for any more."""
    made = sample_run(store)
    for variant in ("sft", "rlt"):
        for manifest in scored_training_traces(store, made, variant=variant):
            made[f"{manifest.label}@0"] = manifest
    commit(store, "trace-scoring[sft]", {"scores": [score_row(5, 9.0, rank=1)]}, seed=7)
    commit(store, "teacher-sft", {}, seed=7, config={"nested": {"learning_rate": 2e-4}})
    return made


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, fill(store)


def rows_of(store, sql):
    with connect(store) as connection:
        return connection.sql(sql).to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def ask(filled):
    return lambda title: rows_of(filled[0], QUERIES[title])


@pytest.fixture(scope="module")
def table(filled):
    """The rows of an artifact's table, by the artifact's name."""
    store, made = filled
    return lambda name, table: read_rows(store.local(made[name]), table)


@pytest.fixture(scope="module")
def training(table):
    """The scored traces of training questions, each with its question and its text."""
    questions = {row["question_id"]: row for row in table("dataset-prep", "questions")}
    texts = {row["trace_id"]: row["text"] for row in table("trace-generation[sft]@0", "traces")}
    return [
        row | {"asked": questions[row["question_id"]], "text": texts[row["trace_id"]]}
        for row in table("trace-scoring[sft]@0", "scores")
        if row["status"] == "scored"
    ]


def marks(rows):
    """Question -> whether it was answered right."""
    return {row["question_id"]: row["outcome"] == "correct" for row in rows}


def numbers(text):
    return re.findall(r"-?\d+", text)


def rounded(rows):
    """Sums of floats differ in their last digits with the order of the rows."""
    return [[round(v, 9) if isinstance(v, float) else v for v in row] for row in rows]


# ---------------------------------------------------------------- the page
def test_the_column_reference_is_generated_and_its_types_are_those_of_the_views(filled):
    page = PAGE.read_text()
    assert "\n".join(reference()) in page, "paste the output of python -m rlt_core.sql.schemas"
    with connect(filled[0]) as connection:
        for view, schema in VIEWS.items():
            described = connection.execute(f"describe {view}").fetchall()
            found = [(name, kind.lower()) for name, kind, *_ in described]
            assert found == [(field.name, SQL_TYPES[field.type]) for field in schema], view


def test_there_are_ten_queries_and_each_is_about_the_names_of_a_run():
    assert len(QUERIES) >= 10
    by_label = [title for title, sql in QUERIES.items() if "'tiny/" not in sql]
    assert by_label == ["What changed between two runs of a node"]


def test_a_query_about_one_name_opens_no_other_file(tmp_path):
    store = Store(str(tmp_path))
    fill(store)
    old = next(m for m in store.manifests() if m.label == "trace-scoring[sft]" and m.seed == 7)
    (store.local(old) / "scores.parquet").unlink()
    about_one = [sql for sql in QUERIES.values() if "run_of(" in sql]
    assert len(about_one) >= 8
    for sql in about_one:
        assert rows_of(store, sql)


def test_every_query_says_the_same_on_s3(s3_access, filled, tmp_path, monkeypatch):
    import s3_server

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote = Store(f"s3://{s3_server.BUCKET}/cookbook")
    fill(remote)
    assert QUERIES
    with connect(filled[0]) as local, connect(remote) as s3:
        for title, sql in QUERIES.items():
            here, there = local.sql(sql).fetchall(), s3.sql(sql).fetchall()
            assert here and rounded(there) == rounded(here), title


# ---------------------------------------------------------------- traces and rewards
@pytest.mark.parametrize("name", ["tiny", "rlt"])
def test_the_distillation_data_are_the_chats_that_the_student_is_trained_on(filled, table, name):
    format = load_format(name)
    assert filled[1]["trace-generation[rlt]@0"].config["format"] == load_format("tiny").model_dump(
        mode="json"
    )
    sql = QUERIES["Distillation data"].replace(
        "select config->'format' as f", f"select '{format.model_dump_json()}'::json as f"
    )
    assert sql != QUERIES["Distillation data"]
    questions = {row["question_id"]: row for row in table("dataset-prep", "questions")}
    traces = {row["trace_id"]: row for row in table("trace-generation[rlt]@0", "traces")}
    rewards = {row["trace_id"]: row["reward"] for row in table("trace-scoring[rlt]@0", "scores")}
    rows = rows_of(filled[0], sql)
    assert [row["trace_id"] for row in rows] == sorted(t for t in traces if traces[t]["closed"])
    right = rows_of(filled[0], sql.replace("-- and s.correct", "and s.correct"))
    assert 0 < len(right) < len(rows) and right == [row for row in rows if row["correct"]]
    tokenizer = tiny_tokenizer(format)
    renderer = Renderer(format, tokenizer)
    for row in rows:
        trace = traces[row["trace_id"]]
        question = questions[trace["question_id"]]
        assert row["reward"] == rewards[row["trace_id"]]
        assert row["correct"] is (numbers(trace["text"])[-1:] == [question["answer"]])
        assert (row["question"], row["explanation"]) == (question["question"], trace["text"])
        trained = renderer.student_sft_row(
            question["question"], renderer.encode(trace["text"]), question["solution"]
        )
        chat = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert chat == tokenizer.decode(trained.input_ids) + "\n"  # after the end of the turn


def test_best_traces(ask, training):
    best = {}
    for row in training:
        if row["question_id"] not in best or row["reward"] > best[row["question_id"]]["reward"]:
            best[row["question_id"]] = row
    expected = sorted(best.values(), key=lambda row: -row["reward"])
    assert [(row["question"], row["reward"], row["text"]) for row in ask(
        "Best traces of each question"
    )] == [(row["asked"]["question"], row["reward"], row["text"]) for row in expected]  # fmt: skip


def test_high_reward_and_wrong_result(ask, training):
    ranked = sorted(training, key=lambda row: -row["reward"])
    quarter = ranked[: math.floor((len(ranked) - 1) * 0.25) + 1]
    wrong = [
        (row["reward"], row["asked"]["answer"], (numbers(row["text"]) or [None])[-1])
        for row in quarter
    ]
    wrong = [row for row in wrong if row[1] != row[2]]
    found = ask("High reward, wrong result")
    assert 0 < len(wrong) < len(quarter)
    assert [(row["reward"], row["answer"], row["last_number"]) for row in found] == wrong


def test_reward_parts_by_length(ask, training):
    longest = max(row["think_tokens"] for row in training)
    groups = defaultdict(list)
    for row in training:
        groups[row["think_tokens"] * 8 // (longest + 1) + 1].append(row)
    found = ask("Reward parts by explanation length")
    assert [row["eighth"] for row in found] == sorted(groups)
    assert found[-1]["to_tokens"] == longest and found[0]["from_tokens"] == 0
    for row in found:
        group = groups[row["eighth"]]
        assert row["traces"] == len(group)
        for part in ("reward", "r_ss", "r_kl", "penalty"):
            assert row[part] == pytest.approx(mean(each[part] for each in group))


def test_reward_before_and_after(ask, table):
    def means(name):
        rewards = defaultdict(list)
        for row in table(f"trace-scoring[{name}-held-out]@0", "scores"):
            rewards[row["question_id"]].append(row["reward"])
        return {question: mean(values) for question, values in rewards.items()}

    before, after = means("sft"), means("rlt")
    (found,) = ask("Reward before and after RL")
    assert found == pytest.approx(
        {
            "questions": 4, "before": mean(before.values()), "after": mean(after.values()),
            "gain": 2.0, "standard_error": 0.0, "gained": 1.0,
        },
        abs=1e-9,
    )  # fmt: skip


def test_training_curve(ask, table):
    steps = table("teacher-grpo@0", "train_steps")
    found = ask("Training curve")
    assert len(found) == 8
    assert (found[0]["from_step"], found[-1]["to_step"]) == (1, len(steps))
    for row in found:
        inside = [s for s in steps if row["from_step"] <= s["step"] <= row["to_step"]]
        assert len(inside) in (3, 4)
        assert row["reward"] == pytest.approx(mean(step["reward"] for step in inside))
        assert row["loss"] == pytest.approx(mean(step["loss"] for step in inside))


def test_the_replay_is_the_stored_reward_at_its_own_weights(filled, training):
    store, made = filled
    spec = made["trace-scoring[sft]@0"].config["reward"]
    title = "Replay the reward with other weights"
    own = QUERIES[title].replace("1.0::double", f"{spec['kl_weight']}::double")
    own = own.replace("0.0::double", f"{spec['alpha']}::double")
    assert own != QUERIES[title]
    found = rows_of(store, own)
    assert len(found) == len(training) == 23
    assert any(row["think_tokens"] == 0 for row in training)
    assert {row["trace_id"]: row["reward"] for row in training} == pytest.approx(
        {row["trace_id"]: row["replayed"] for row in found}, abs=1e-6
    )
    assert all(row["new_rank"] == row["rank"] for row in found)


def test_the_replay_at_other_weights_is_the_formula(ask, training):
    expected = {}
    for row in training:
        pairs = zip(row["teacher_think_logprobs"], row["student_think_logprobs"], strict=True)
        kl = mean([teacher - student for teacher, student in pairs] or [1.0])
        expected[row["trace_id"]] = mean(row["student_solution_logprobs"]) - kl + row["penalty"]
    found = ask("Replay the reward with other weights")
    assert {row["trace_id"]: row["replayed"] for row in found} == pytest.approx(expected, abs=1e-6)
    assert any(row["new_rank"] != row["rank"] for row in found)


def test_which_weights_keep_the_ranking(ask, filled, training):
    spec = RewardSpec.model_validate(filled[1]["trace-scoring[sft]@0"].config["reward"])
    found = ask("Which weights keep the ranking")
    assert len(found) == 16
    for row in found:
        weights = {"alpha": float(row["alpha"]), "kl_weight": float(row["kl_weight"])}
        changed = spec.model_copy(update=weights)
        replayed = [
            reward_parts(
                trace["student_solution_logprobs"], trace["student_think_logprobs"],
                trace["teacher_think_logprobs"], trace["closed"], changed,
            ).reward
            for trace in training
        ]  # fmt: skip
        groups = defaultdict(list)
        for trace, reward in zip(training, replayed, strict=True):
            groups[trace["question_id"]].append((reward, -trace["sample"], trace["rank"] == 1))
        stored = [trace["reward"] for trace in training]
        assert row["pearson"] == pytest.approx(correlation(stored, replayed), abs=1e-9)
        assert row["best_kept"] == pytest.approx(mean(max(group)[2] for group in groups.values()))
    own = next(row for row in found if float(row["alpha"]) == 0.01 and row["kl_weight"] == 3)
    assert own["best_kept"] == 1 and own["pearson"] == pytest.approx(1)
    assert any(row["best_kept"] < 1 for row in found)


def test_unfinished_and_too_long_traces(ask):
    found = {row.pop("name"): row for row in ask("Traces that are unfinished or too long")}
    held_out = {"traces": 8, "unclosed": 0, "too_long": 0, "cut": 0}
    names = [f"tiny/trace-scoring[{part}-held-out]@{s}" for part in ("rlt", "sft") for s in (0, 1)]
    training = {"traces": 24, "unclosed": 1, "too_long": 1, "cut": 1}
    assert found == {
        "tiny/trace-scoring[sft]@0": training,
        "tiny/trace-scoring[rlt]@0": training,
        **dict.fromkeys(names, held_out),
    }


# ---------------------------------------------------------------- answers
def test_score_by_rank(ask, table):
    rows = table("rank-statistics[reward]", "rank_scores")
    found = ask("Score by reward rank")
    assert [row["rank"] for row in found] == [1, 2, 3, 4]
    for row in found:
        own = [each for each in rows if each["rank"] == row["rank"]]
        assert row["seeds"] == len(own) == 2
        assert row["score"] == pytest.approx(mean(each["value"] for each in own))
        assert row["mean_reward"] == -row["rank"]


def test_agreement_of_two_students(ask, table):
    rlt = marks(table("evaluation[rlt]@0", "eval_samples"))
    dataset = marks(table("evaluation[dataset]@0", "eval_samples"))
    both = Counter((rlt[question], dataset[question]) for question in rlt)
    assert ask("Agreement of two students") == [
        {
            "task": "test", "questions": 12, "both": both[True, True],
            "only_rlt": both[True, False], "only_dataset": both[False, True],
            "neither": both[False, False],
        }
    ]  # fmt: skip
    assert both == {(True, True): 8, (True, False): 3, (False, False): 1}


def test_questions_that_no_model_solves(ask):
    (found,) = ask("Questions that no model solves")
    assert (found["question_id"], found["answer"]) == ("t011", "12")
    assert found["models"] == found["completions"] == 1 + 2 * 6


def test_what_a_student_unlearned(ask, table):
    base = marks(table("evaluation[base]", "eval_samples"))
    student = marks(table("evaluation[dataset]@0", "eval_samples"))
    assert [question for question in base if base[question] and not student[question]] == ["t000"]
    (found,) = ask("What a student unlearned")
    assert found["question"] == "what is 0 + 1?"


def test_how_completions_ended(ask, filled):
    found = {row["name"]: row for row in ask("How completions ended")}
    assert set(found) == {f"tiny/{name}" for name in filled[1] if name.startswith("evaluation[")}
    rlt = found["tiny/evaluation[rlt]@0"]
    assert (rlt["completions"], rlt["cut"], rlt["ungraded"]) == (12, 0, 0)
    assert (rlt["correct"], rlt["wrong"]) == pytest.approx((11 / 12, 1 / 12))


# ---------------------------------------------------------------- data, cost, lineage
def test_dropped_rows(ask):
    counted = {"label": "dataset-prep", "dropped": 1}
    assert ask("Dropped rows by reason") == [
        counted | {"reason": "duplicate", "first_row": 3, "detail": "of row 1"},
        counted | {"reason": "prompt_too_long", "first_row": 5, "detail": "300 tokens"},
    ]


def test_cost_of_each_stage(ask, filled):
    nodes = Counter(manifest.stage for manifest in filled[1].values())
    found = {row["stage"]: row for row in ask("Cost of each stage")}
    assert {stage: row["nodes"] for stage, row in found.items()} == nodes
    assert all(row["seconds"] == 2.0 * row["nodes"] for row in found.values())
    assert sum(row["share"] for row in found.values()) == pytest.approx(1.0)


def test_lineage_of_a_score(ask):
    found = [(row["depth"], row["label"], row["seed"]) for row in ask("Lineage of a score")]
    assert found == [
        (0, "trace-scoring[sft]", 0),
        (1, "trace-generation[sft]", 0),
        (2, "teacher-sft", 0),
        (3, "base-model", None),
        (4, "dataset-prep", None),
    ]


def test_what_changed(ask):
    assert ask("What changed between two runs of a node") == [
        {"label": "teacher-sft", "field": "$.nested.learning_rate", "values": ["0.0001", "0.0002"]},
        {"label": "teacher-sft", "field": "$.seed", "values": ["0", "1", "7"]},
    ]
