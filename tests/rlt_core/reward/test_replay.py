"""The reward in SQL is the reward in Python, and a replay is a scoring without the models."""

import itertools
import math

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlt_core.config import REWARD_PRESETS, RewardSpec
from rlt_core.errors import UserError
from rlt_core.reward.formula import reward_parts
from rlt_core.reward.replay import changed, chosen, replayed, summaries
from rlt_core.rows import read_rows
from rlt_core.scoring import assign_ranks
from rlt_core.sql import macros
from rlt_core.sql.macros import arguments, literal
from rlt_core.store import Store
from tests.sample_store import commit, score_row

# ---------------------------------------------------------------- macros
logprob = st.floats(min_value=-20, max_value=0, width=32)
reduction = st.sampled_from(["mean", "min", "max", "median", "sum"])
think = st.lists(st.tuples(logprob, logprob, st.floats(0, 30, width=32)), max_size=12)
case = st.tuples(st.lists(logprob, min_size=1, max_size=6), think, st.booleans())
specs = st.builds(
    RewardSpec,
    alpha=st.floats(-2, 2),
    kl_weight=st.floats(-5, 5),
    kl=st.sampled_from(["k1", "k3", "full"]),
    solution_reduction=reduction,
    solution_extreme=reduction,
    think_reduction=reduction,
    think_extreme=reduction,
    clip_logprob=st.none() | st.floats(0.5, 30),
    clip_kl=st.none() | st.floats(0.5, 30),
    unclosed_penalty=st.floats(-3, 0),
    empty_think_kl=st.floats(-1, 3),
)
COLUMNS = {
    "solution": pa.list_(pa.float32()), "student": pa.list_(pa.float32()),
    "teacher": pa.list_(pa.float32()), "think_kl": pa.list_(pa.float32()), "closed": pa.bool_(),
}  # fmt: skip


def as_row(example):
    solution, tokens, closed = example
    student, teacher, think_kl = (
        (list(values) for values in zip(*tokens, strict=True)) if tokens else ([], [], [])
    )
    return dict(zip(COLUMNS, (solution, student, teacher, think_kl, closed), strict=True))


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as connection:
        macros.create(connection)
        yield connection


def ask(connection, rows, expressions):
    connection.register("cases", pa.Table.from_pylist(rows, schema=pa.schema(COLUMNS)))
    return connection.execute(f"select {expressions} from cases").fetchall()


@given(specs, st.lists(case, min_size=1, max_size=30))
def test_macros_are_the_reward_of_the_reference(connection, spec, examples):
    rows = [as_row(example) for example in examples]
    alpha, kl_weight = literal(spec.alpha), literal(spec.kl_weight)
    found = ask(
        connection,
        rows,
        f"""
        rlt_r_ss(solution, {alpha}, {arguments(spec, macros.SOLUTION)}),
        rlt_r_kl(student, teacher, {alpha}, think_kl, {arguments(spec, macros.THINK)}),
        rlt_penalty(closed, {arguments(spec, macros.PENALTY)}),
        rlt_reward(solution, student, teacher, {alpha}, {kl_weight}, closed, think_kl,
          {arguments(spec, macros.REWARD)})
        """,
    )
    assert found
    for row, parts in zip(rows, found, strict=True):
        expected = reward_parts(
            row["solution"], row["student"], row["teacher"], row["closed"], spec, row["think_kl"]
        )
        wanted = (expected.r_ss, expected.r_kl, expected.penalty, expected.reward)
        # Of a sum of exp(20), 1e-6 is below the last digit of a double.
        assert parts == pytest.approx(wanted, abs=1e-6, rel=1e-12)


@given(st.lists(case, min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 10))
def test_five_arguments_are_enough(connection, examples, alpha, kl_weight):
    rows = [as_row(example) for example in examples]
    weights = f"{literal(alpha)}, {literal(kl_weight)}"
    found = ask(connection, rows, f"rlt_reward(solution, student, teacher, {weights})")
    spec = RewardSpec(alpha=alpha, kl_weight=kl_weight)
    expected = [
        reward_parts(row["solution"], row["student"], row["teacher"], True, spec).reward
        for row in rows
    ]
    assert [reward for (reward,) in found] == pytest.approx(expected, abs=1e-6)


def test_what_has_no_log_probs_has_no_reward(connection):
    lists = "null::float[], null::float[], null::float[]"
    ((typed, untyped, empty, parts),) = connection.execute(
        f"select rlt_reward({lists}, 0.01, 3), rlt_reward(null, null, null, 0.01, 3), "
        "rlt_reward([], [-1.0], [-1.0], 0.01, 3), "
        "[rlt_r_ss(null::float[], 0.01), rlt_r_kl(null::float[], null::float[], 0.01)]"
    ).fetchall()
    assert (typed, untyped, empty, parts) == (None, None, None, [None, None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("[-1.0], [-1.0], [-1.0, -2.0], 0.01, 3", "1 student and 2 teacher think log-probs"),
        ("[-1.0], [-1.0, -2.0], [-1.0], 0.01, 3", "2 student and 1 teacher think log-probs"),
        ("[-1.0], [-1.0], [-1.0], 0.01, 3, kl := 'k2'", "k2 is none of k1, k3, full"),
        ("[-1.0], [-1.0], [-1.0], 0.01, 3, true, [1.0, 2.0], kl := 'full'", "1 tokens.* of 2"),
        ("[-1.0], [-1.0], [-1.0], 0.01, 3, think_reduction := 'medan'", "medan"),
    ],
)
def test_what_python_refuses_sql_refuses(connection, arguments, message):
    with pytest.raises(duckdb.Error, match=message):
        connection.execute(f"select rlt_reward({arguments})").fetchall()


# ---------------------------------------------------------------- replay
def filled(store, spec=None, label="trace-scoring[a]", seed=0, shards=3):
    """Scored traces of several teachers and students, with ties, one empty, one too long."""
    spec = spec or RewardSpec()
    draw = np.random.default_rng(5)
    rows = []
    for question, teacher, student, sample in itertools.product(range(6), "tu", "vw", range(4)):
        tokens = 0 if (question, sample) == (2, 1) else int(draw.integers(1, 9))
        lists = [(-draw.exponential(size=size)).astype(np.float32) for size in (3, tokens, tokens)]
        if (question, sample) == (3, 2):  # equal to the sample before it
            lists = [rows[-1][name] for name in NAMES]
        think_kl = [abs(float(value)) for value in lists[1]]
        values = {
            "seed": seed, "teacher": teacher, "student": student, "closed": sample != 3,
            **{name: list(map(float, values)) for name, values in zip(NAMES, lists, strict=True)},
            "think_kl": think_kl if spec.kl == "full" else None,
        }  # fmt: skip
        if (question, sample) == (4, 0):
            nothing = dict.fromkeys((*NAMES, "think_kl", "penalty"))
            rows.append(score_row(question, None, sample, **values | nothing))
            continue
        parts = reward_parts(*lists, values["closed"], spec, values["think_kl"])
        rows.append(score_row(question, parts.reward, sample, **values))
        rows[-1] |= vars(parts)
    draw.shuffle(rows)
    config = {"reward": spec.model_dump()}
    tables = {"scores": assign_ranks(rows)}
    return commit(store, label, tables, seed=seed, config=config, shards=shards)


NAMES = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")


def replay(store, manifests, changes=None):
    """The rows of a replay, and what changed in each artifact."""
    with replayed(store, manifests, changes or {}) as connection:
        rows = connection.sql("from replayed").to_arrow_table().to_pylist()
        return rows, summaries(connection)


def scored_anew(store, manifest, spec):
    """The artifact's rows as the stage itself would give them under a spec."""
    rows = read_rows(store.intact(manifest), "scores")
    for row in rows:
        if row["reward"] is not None:
            lists = [row[name] for name in NAMES]
            row |= vars(reward_parts(*lists, row["closed"], spec, row["think_kl"]))
    return assign_ranks(rows)


IDENTITY = ("question_id", "seed", "teacher", "student", "sample")


def by_identity(rows, *names):
    return {tuple(row[n] for n in IDENTITY): [row[n] for n in names] for row in rows}


@pytest.mark.parametrize("spec", [*REWARD_PRESETS.values(), RewardSpec(kl="full", alpha=0.3)])
def test_nothing_changed_gives_what_is_stored(tmp_path, spec):
    store = Store(str(tmp_path))
    manifest = filled(store, spec)
    rows, effects = replay(store, [manifest])
    summary = effects[manifest.ref.key]
    stored = read_rows(store.intact(manifest), "scores")
    assert by_identity(rows, "rank") == by_identity(stored, "rank")
    parts = ("reward", "r_ss", "r_kl", "penalty")
    found, expected = by_identity(rows, *parts), by_identity(stored, *parts)
    assert found == {key: pytest.approx(value, abs=1e-6) for key, value in expected.items()}
    assert by_identity(rows, "stored_reward") == by_identity(stored, "reward")
    assert summary["best_changed"] == 0 and summary["traces"] == 92 and summary["questions"] == 24
    assert summary["pearson"] == pytest.approx(1) and summary["spearman"] == pytest.approx(1)


@settings(deadline=None, max_examples=15)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "alpha": st.floats(-1, 1),
            "kl_weight": st.floats(-4, 4),
            "kl": st.sampled_from(["k1", "k3", "full"]),
            "solution_reduction": reduction,
            "think_reduction": reduction,
        },
    )
)
def test_a_replay_is_what_scoring_anew_would_give(tmp_path_factory, changes):
    store = Store(str(tmp_path_factory.mktemp("store")))
    own = RewardSpec(kl="full", think_extreme="median", unclosed_penalty=-0.25)
    manifest = filled(store, own)
    rows, effects = replay(store, [manifest], changes)
    summary = effects[manifest.ref.key]
    spec = own.model_copy(update=changes)
    expected = scored_anew(store, manifest, spec)
    parts = by_identity(expected, "reward", "r_ss", "r_kl", "penalty", "status", "trace_id")
    found = by_identity(rows, "reward", "r_ss", "r_kl", "penalty", "status", "trace_id")
    for key, values in parts.items():
        assert found[key][:4] == pytest.approx(values[:4], abs=1e-6)
        assert found[key][4:] == values[4:]
    assert by_identity(rows, "rank") == by_identity(expected, "rank")
    rewarded = [row for row in rows if row["reward"] is not None]
    new, old = ([row[name] for row in rewarded] for name in ("reward", "stored_reward"))
    assert summary["mean_after"] == pytest.approx(np.mean(new))
    assert summary["mean_before"] == pytest.approx(np.mean(old))
    if len(set(new)) > 2:
        assert summary["pearson"] == pytest.approx(stats.pearsonr(old, new)[0], abs=1e-9)
        assert summary["spearman"] == pytest.approx(stats.spearmanr(old, new)[0], abs=1e-9)
    best = [row["stored_rank"] != 1 for row in rows if row["rank"] == 1]
    assert summary["best_changed"] == pytest.approx(np.mean(best))


@pytest.mark.parametrize("changes", [{"alpha": math.nan}, {"kl_weight": math.inf}, {"kl": "k2"}])
def test_a_change_that_is_not_valid_is_refused(changes):
    with pytest.raises(UserError, match=f"reward.*{next(iter(changes))}|finite"):
        changed(RewardSpec(), changes)


def test_artifacts_keep_their_own_spec_and_their_own_ranks(store_root):
    store = Store(store_root)
    made = [
        filled(store, RewardSpec(kl="k3"), "trace-scoring[a]"),
        filled(store, RewardSpec(alpha=1.0), "trace-scoring[b]", shards=0),
    ]
    read = []
    report = lambda done, total, metrics: read.append((done, total))  # noqa: E731
    with replayed(store, made, {"kl_weight": 1.0}, report) as connection:
        rows = connection.sql("from replayed").to_arrow_table().to_pylist()
        found = summaries(connection)
    total = sum(manifest.rows for manifest in made)
    assert read[-1] == (total, total) and len(rows) == total
    assert set(found) == {manifest.ref.key for manifest in made}
    for manifest, spec in zip(
        made, (RewardSpec(kl="k3", kl_weight=1), RewardSpec(alpha=1, kl_weight=1)), strict=True
    ):
        own = [row for row in rows if row["run"] == manifest.ref.key]
        expected = by_identity(scored_anew(store, manifest, spec), "rank", "reward")
        assert {key: pytest.approx(value) for key, value in expected.items()} == by_identity(
            own, "rank", "reward"
        )


def test_an_artifact_without_any_reward_has_an_empty_summary(tmp_path):
    store = Store(str(tmp_path))
    config = {"reward": RewardSpec().model_dump()}
    rows = [score_row(1, None, student_solution_logprobs=None)]
    manifest = commit(store, "trace-scoring[a]", {"scores": rows}, config=config)
    found, effects = replay(store, [manifest])
    summary = effects[manifest.ref.key]
    assert [row["rank"] for row in found] == [None]
    assert (summary["traces"], summary["questions"], summary["mean_after"]) == (0, 0, None)


# ---------------------------------------------------------------- what to replay, and mistakes
def test_without_names_the_latest_of_each_label_and_seed(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match="no scored traces"):
        chosen(store, [])
    first, other = (filled(store, seed=seed) for seed in (0, 1))
    older = first.model_copy(
        update={
            "ref": first.ref.model_copy(update={"key": "0" * 16}),
            "finished_at": first.started_at,
        }
    )
    assert store.publish(older)
    commit(store, "base-model", {})
    assert [one.ref.key for one in chosen(store, [])] == [first.ref.key, other.ref.key]
    store.set_ref("tiny/x", other.ref)
    named = chosen(store, [other.ref.key[:6], "tiny/x", "0" * 16])
    assert [one.ref.key for one in named] == [other.ref.key, "0" * 16]


def test_mistakes_name_the_artifact_and_the_fix(tmp_path):
    store = Store(str(tmp_path))
    scored = filled(store)
    model = commit(store, "base-model", {})
    imported = commit(store, "trace-scoring[imported]", {"scores": [score_row(1, -1.0)]})
    with pytest.raises(UserError, match=r"base-model.*kind model"):
        chosen(store, [model.ref.key])
    with pytest.raises(UserError, match=rf"imported.*{imported.ref.key}.*no log-probs"):
        chosen(store, [imported.ref.key])
    with pytest.raises(UserError, match=rf"{scored.ref.key}.*think_kl.*reward\.kl=full"):
        replay(store, [scored], {"kl": "full"})
    with pytest.raises(UserError, match="no artifact"):
        chosen(store, ["nothing"])
    config = {"reward": {"gamma": 1}}
    foreign = commit(store, "trace-scoring[foreign]", {"scores": []}, config=config)
    with pytest.raises(UserError, match=rf"{foreign.ref.key}.*reward is not valid in this version"):
        replay(store, [foreign])


@pytest.mark.parametrize("kl", ["k1", "full"])
def test_a_scored_trace_without_log_probs_is_named(tmp_path, kl):
    store = Store(str(tmp_path))
    think = [-1.0] if kl == "full" else None  # then the full-vocabulary KL alone is missing
    lists = {"student_think_logprobs": think, "teacher_think_logprobs": think}
    manifest = commit(
        store, "trace-scoring[a]", {"scores": [score_row(n, -1.0, **lists) for n in (1, 2)]},
        config={"reward": RewardSpec(kl=kl).model_dump()},
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"{manifest.ref.key}.*2 scored traces, q001-0 the first"):
        replay(store, [manifest])


def test_a_damaged_file_is_one_clear_error(store_root):
    store = Store(store_root)
    manifest = filled(store, shards=0)
    store.files.fs.pipe_file(f"{store.data_path(manifest)}/scores.parquet", b"PAR1 no more")
    with pytest.raises(
        UserError, match=r"scores\.parquet: 12 bytes, \d+ bytes when committed"
    ) as caught:
        replay(store, [manifest])
    assert "Traceback" not in str(caught.value)
