"""What students are given to learn from, by real runs of the stages on a tiny random model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.sample_manifest import sample_manifest
from rlt_core.config import (
    GenerationConfig,
    RewardSpec,
    ScoringConfig,
    ScratchModel,
    SFTConfig,
    StageResources,
)
from rlt_core.data.trace_selection import choose
from rlt_core.errors import UserError
from rlt_core.explorer.queries import Library
from rlt_core.generation import open_engine, sample_seed
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer, Row
from rlt_core.rows import read_rows
from rlt_core.scoring import assign_ranks
from rlt_core.scoring.alignment import vocabulary_digest
from rlt_core.stages import (
    RankStatisticsConfig,
    StudentSFTStageConfig,
    TraceGenerationConfig,
    TraceImportConfig,
    TraceScoringConfig,
)
from rlt_core.store import Manifest, Ref, Store
from tasks.stages import student_sft
from tests.sample_store import eval_row, row
from tests.tasks.nodes import committed, node_spec, run, table

FORMAT = load_format("tiny")
PROMPTER = Renderer(FORMAT, tiny_tokenizer(FORMAT))
QUESTIONS, SAMPLES = 6, 3
TEXTS = {  # of each question's traces; the reward falls with the sample
    (question, sample): "".join("0123456789;"[(question + sample + i) % 11] for i in range(length))
    for question in range(QUESTIONS)
    for sample, length in enumerate((30 + question, 3 * question, 8))
}
SFT = SFTConfig(steps=6, batch_size=2, max_tokens=200)


def question_rows() -> list[dict[str, Any]]:
    return [
        row(
            "questions", question_id=f"q{number}", split="train" if number < QUESTIONS else "test",
            question=f"{number}+1", solution=str(number + 1), answer=str(number + 1),
            grader="arithmetic",
            trace=f"{number}+1={number + 1 - number // 5}" if number % 2 else None,
        )
        for number in range(QUESTIONS + 1)
    ]  # fmt: skip


def trace_rows() -> list[dict[str, Any]]:
    return [
        row(
            "traces", trace_id=f"q{question}-{sample}", question_id=f"q{question}", sample=sample,
            text=text, token_ids=PROMPTER.encode(text), closed=True,
        )
        for (question, sample), text in TEXTS.items()
    ]  # fmt: skip


def score_rows() -> list[dict[str, Any]]:
    """q5's longest trace was too long to be scored."""
    return assign_ranks(
        [
            row(
                "scores", trace_id=f"q{question}-{sample}", question_id=f"q{question}",
                sample=sample, status="too_long" if (question, sample) == (5, 0) else "scored",
                reward=None if (question, sample) == (5, 0) else -float(sample),
                think_tokens=len(PROMPTER.encode(text)),
            )
            for (question, sample), text in TEXTS.items()
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Ref]]:
    """A store with a model, questions, traces and scores."""
    store = Store(str(tmp_path_factory.mktemp("students") / "store"))
    tiny = new_model(ScratchModel(layers=1, width=16, heads=2, seed=0), PROMPTER.tokenizer)
    model = committed(
        store, Ref(kind="model", key="1" * 16),
        lambda out: save_model(tiny, PROMPTER.tokenizer, out / "model"),
    )  # fmt: skip
    refs = {
        "model": model,
        "questions": committed(
            store, Ref(kind="dataset", key="2" * 16), table("questions", question_rows())
        ),
        "traces": committed(
            store,
            Ref(kind="traces", key="3" * 16),
            table("traces", trace_rows()),
            {"teacher": model},
        ),
        "scores": committed(store, Ref(kind="scores", key="4" * 16), table("scores", score_rows())),
    }
    return store, refs


Taught = tuple[Manifest, list[Row], SFTConfig]


@pytest.fixture(scope="module")
def taught(given: tuple[Store, dict[str, Ref]]) -> Iterator[Callable[..., Taught]]:
    """Runs a student; returns its manifest and what the training was given."""
    store, refs = given
    seen: list[Any] = []
    known: dict[str, list[Any]] = {}
    train_sft = student_sft.train_sft

    def watched(model: Path, rows: list[Row], config: SFTConfig, *rest: Any) -> dict[str, float]:
        seen[:] = [rows, config]
        short = config.model_copy(update={"steps": config.steps and 1})
        return train_sft(model, rows, short, *rest)

    def teach(traces: str = "traces", **changes: Any) -> Taught:
        names = ["model", "questions"] + (["traces", "scores"] if traces == "traces" else [])
        common = {"sft": SFT, "rank": None, "n_questions": None, "format": FORMAT, "seed": 0}
        config = StudentSFTStageConfig(traces=traces, **{**common, **changes})
        manifest = run(
            node_spec(store, "student-sft", config, {name: refs[name] for name in names})
        )
        rows, recipe = known.setdefault(manifest.ref.key, list(seen))
        return manifest, rows, recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_sft, "train_sft", watched)
        yield teach


def row_of(question: int, text: str) -> list[int]:
    ids = PROMPTER.encode(text)
    return PROMPTER.student_sft_row(f"{question}+1", ids, str(question + 1)).input_ids


def rows_of(*names: str) -> list[list[int]]:
    """Rows on traces `question-sample`."""
    pairs = [tuple(map(int, name.split("-"))) for name in names]
    return [row_of(question, TEXTS[question, sample]) for question, sample in pairs]


def test_without_traces_every_training_question_is_learnt_with_an_empty_thought(
    taught: Any,
) -> None:
    manifest, rows, _ = taught("none")
    assert [each.input_ids for each in rows] == [row_of(q, "") for q in range(QUESTIONS)]
    assert manifest.metrics["questions"] == manifest.metrics["rows"] == QUESTIONS
    assert manifest.metrics["traces"] == manifest.metrics["explanation_tokens"] == 0
    _, rows, _ = taught("none", n_questions=2)
    chosen = choose([f"q{q}" for q in range(QUESTIONS)], 2, 0)
    assert [each.input_ids for each in rows] == [row_of(int(name[1:]), "") for name in chosen]


def test_all_and_a_rank_are_the_traces_as_they_were_scored(taught: Any) -> None:
    _, rows, config = taught()
    assert [each.input_ids for each in rows] == [row_of(q, text) for (q, _), text in TEXTS.items()]
    assert config == SFT
    _, rows, config = taught(rank=2)
    expected = rows_of("0-1", "1-1", "2-1", "3-1", "4-1", "5-2")
    assert [each.input_ids for each in rows] == expected and config == SFT
    manifest, rows, _ = taught(rank=1, order="length")
    expected = rows_of("0-1", "1-1", "2-1", "3-2", "4-2", "5-2")
    assert [each.input_ids for each in rows] == expected
    assert manifest.metrics["explanation_tokens"] == 0 + 3 + 6 + 8 + 8 + 8


def test_random_sets_take_every_trace_once_and_differ_by_seed(taught: Any) -> None:
    chosen = [
        each.input_ids
        for rank in range(1, SAMPLES + 1)
        for each in taught(rank=rank, order="random")[1]
    ]
    scored = rows_of(*(f"{q}-{s}" for q, s in TEXTS if (q, s) != (5, 0)))
    assert sorted(chosen) == sorted(scored)
    assert taught(rank=1, order="random", seed=1)[1] != taught(rank=1, order="random")[1]


def test_the_best_trace_that_fits_by_its_real_length(taught: Any) -> None:
    limit = len(row_of(2, TEXTS[2, 0]))  # of the best ones, those of questions 0 to 2 fit
    sft = SFT.model_copy(update={"max_tokens": limit})
    manifest, rows, _ = taught(fits=True, sft=sft)
    expected = rows_of("0-0", "1-0", "2-0", "3-1", "4-1", "5-1")
    assert [each.input_ids for each in rows] == expected
    metrics = manifest.metrics
    assert (metrics["not_first_choice"], metrics["no_trace_fits"]) == (2, 0)
    assert metrics["dropped_too_long"] == 0
    # No room but for empty thoughts and those of three tokens.
    sft = SFT.model_copy(update={"max_tokens": len(row_of(1, TEXTS[1, 1]))})
    manifest, rows, _ = taught(fits=True, sft=sft)
    assert [each.input_ids for each in rows] == rows_of("0-1", "1-1")
    assert manifest.metrics["not_first_choice"] == 2
    assert manifest.metrics["no_trace_fits"] == QUESTIONS - 2
    sft = SFT.model_copy(update={"max_tokens": 5})
    with pytest.raises(UserError, match="no scored trace of 6 questions makes a row of at most 5"):
        taught(fits=True, sft=sft)


def test_token_matched_sets_have_the_tokens_of_the_smallest_and_as_many_passes(
    taught: Any,
) -> None:
    plain = {rank: taught(rank=rank) for rank in range(1, SAMPLES + 1)}
    whole = {rank: found[0].metrics["explanation_tokens"] for rank, found in plain.items()}
    least, longest = min(whole.values()), 35
    assert len(set(whole.values())) > 1
    kept = {}
    for rank, (_, rows, _) in plain.items():
        manifest, fewer, config = taught(rank=rank, token_matched=True)
        tokens = manifest.metrics["explanation_tokens"]
        assert tokens <= least
        assert tokens == whole[rank] or tokens > least - longest
        ids = [each.input_ids for each in fewer]
        assert [each.input_ids for each in rows if each.input_ids in ids] == ids
        assert config.steps == max(1, round(SFT.steps * len(fewer) / len(rows)))
        kept[rank] = len(fewer)
    assert kept[2] == len(plain[2][1]) > kept[1]  # rank 2 has the fewest tokens
    by_epochs = SFT.model_copy(update={"steps": None, "epochs": 1.0})
    assert taught(rank=1, token_matched=True, sft=by_epochs)[2] == by_epochs


def test_rows_that_are_too_long_count_for_no_tokens(taught: Any) -> None:
    """Else the set of long traces would be cut to match tokens that are never trained on."""
    sft = SFT.model_copy(update={"max_tokens": len(row_of(0, "x" * 20))})
    manifest, rows, config = taught(rank=1, token_matched=True, sft=sft)
    assert manifest.metrics["explanation_tokens"] == 15  # of q5; the other five are too long
    assert manifest.metrics["dropped_too_long"] == 5 and config.steps == SFT.steps
    assert len(rows) == QUESTIONS
    sft = sft.model_copy(update={"steps": 12, "max_tokens": len(row_of(2, TEXTS[2, 0]))})
    manifest, rows, config = taught(rank=1, token_matched=True, sft=sft)
    left = manifest.metrics["rows"]  # of the four that fit
    assert len(rows) > left and config.steps == 12 * left / 4


def test_a_student_of_another_vocabulary_learns_the_text(
    given: tuple[Store, dict[str, Ref]], taught: Any
) -> None:
    store, refs = given
    format = load_format("r1")
    tokenizer = tiny_tokenizer(format)
    tiny = new_model(ScratchModel(layers=1, width=16, heads=2, seed=0), tokenizer)
    other = committed(
        store, Ref(kind="model", key="5" * 16),
        lambda out: save_model(tiny, tokenizer, out / "model"),
    )  # fmt: skip
    renderer = Renderer(format, tokenizer)
    config = StudentSFTStageConfig(
        sft=SFT.model_copy(update={"max_tokens": 400}), traces="traces", rank=None, fits=True,
        n_questions=None, format=format, seed=0,
    )  # fmt: skip
    manifest = run(node_spec(store, "student-sft", config, refs | {"model": other}))
    texts = [TEXTS[q, 0 if q < 5 else 1] for q in range(QUESTIONS)]
    tokens = sum(len(renderer.encode(text)) for text in texts)
    assert manifest.metrics["explanation_tokens"] == tokens
    assert manifest.metrics["rows"] == QUESTIONS


# ---------------------------------------------------------------- traces of a solver
def test_a_solver_sees_the_question_alone_and_its_thought_is_the_trace(
    given: tuple[Store, dict[str, Ref]], taught: Any
) -> None:
    """By a student that has learnt the tags by heart, so that there are thoughts to read."""
    store, refs = given
    sft = SFTConfig(epochs=60, batch_size=6, learning_rate=0.02, max_tokens=200)
    student = taught(rank=3, sft=sft)[0]
    sampling = GenerationConfig(n=2, temperature=0.5, max_tokens=40)
    config = TraceGenerationConfig(
        sampling=sampling, split="train", context="student", format=FORMAT, seed=0
    )
    inputs = {"teacher": student.ref, "questions": refs["questions"]}
    manifest = run(node_spec(store, "trace-generation", config, inputs))
    traces = read_rows(store.intact(manifest), "traces")
    questions = [each["question_id"] for each in traces[:: sampling.n]]
    assert questions == [f"q{q}" for q in range(QUESTIONS)]
    prompts = [PROMPTER.student_prompt(f"{q}+1") for q in range(QUESTIONS)]
    seeds = [[sample_seed(manifest.ref.key, q, i) for i in range(2)] for q in questions]
    resources = StageResources(device="cpu")
    with open_engine(store.intact(student) / "model", sampling.dtype, resources) as engine:
        expected = engine.generate(prompts, sampling, seeds, PROMPTER.stop_ids)
    flat = [one for group in expected for one in group]
    for trace, completion in zip(traces, flat, strict=True):
        assert trace["completion_ids"] == completion.ids
        thought = PROMPTER.thought_of(completion.ids)
        assert (trace["token_ids"], trace["text"]) == (thought.ids, thought.text)
        assert trace["closed"] == thought.closed
        assert trace["prompt_tokens"] == len(prompts[int(trace["question_id"][1:])])
    closed = [trace for trace in traces if trace["closed"]]
    assert len(closed) > QUESTIONS
    tags = (FORMAT.thought_open, FORMAT.thought_close, FORMAT.solution_open)
    assert not any(tag in trace["text"] for tag in tags for trace in closed)


# ---------------------------------------------------------------- traces of a data set
def test_a_data_sets_own_traces_become_a_table_and_are_scored(
    given: tuple[Store, dict[str, Ref]],
) -> None:
    store, refs = given
    config = TraceImportConfig(name="dataset", digest=None, format=FORMAT)
    inputs = {"tokenizer": refs["model"], "questions": refs["questions"]}
    manifest = run(node_spec(store, "trace-import", config, inputs))
    assert manifest.metrics == {"questions": 3, "traces": 3, "dropped": 0}
    out = store.intact(manifest)
    wanted = [each for each in question_rows() if each["trace"] and each["split"] == "train"]
    assert read_rows(out, "questions") == wanted
    for question, trace in zip(wanted, read_rows(out, "traces"), strict=True):
        assert trace["trace_id"] == f"{question['question_id']}-0"
        assert (trace["teacher"], trace["text"]) == ("dataset", question["trace"])
        explanation = PROMPTER.split_completion(trace["completion_ids"])
        assert explanation.closed and trace["closed"]
        assert explanation.ids == trace["token_ids"] == PROMPTER.encode(question["trace"])
    scoring = TraceScoringConfig(
        reward=RewardSpec(), scoring=ScoringConfig(max_tokens=200), format=FORMAT, seed=0
    )
    models = {"teacher": refs["model"], "student": refs["model"]}
    inputs = {"traces": manifest.ref, "questions": refs["questions"], **models}
    scored = run(node_spec(store, "trace-scoring", scoring, inputs))
    scores = read_rows(store.intact(scored), "scores", ["trace_id", "correct", "rank"])
    assert [each["trace_id"] for each in scores] == ["q1-0", "q3-0", "q5-0"]
    assert [each["correct"] for each in scores] == [True, True, False]  # 5+1=5
    assert (scored.metrics["correct"], scored.metrics["ungraded"]) == (pytest.approx(2 / 3), 0)


# ---------------------------------------------------------------- statistics
def test_rank_statistics_know_what_each_set_holds(given: tuple[Store, dict[str, Ref]]) -> None:
    store, refs = given
    inputs = {"scores@0": refs["scores"]}
    for rank in range(1, SAMPLES + 1):
        marks = [eval_row(question, question >= 3 * rank) for question in range(12)]
        inputs[f"rank-{rank}@0"] = committed(
            store,
            Ref(kind="evaluation", key=f"e{rank}" * 8),
            table("eval_samples", [*marks, eval_row(1, True, task="other")]),
        )
    rewards: dict[str, list[float]] = {}
    for ranked_by in ("reward", "length", "random", "token-matched"):
        config = RankStatisticsConfig(
            ranks=SAMPLES, seeds=(0,), resamples=50, task="test", ranked_by=ranked_by
        )
        manifest = run(node_spec(store, "rank-statistics", config, inputs))
        rows = read_rows(store.intact(manifest), "rank_scores")
        assert [each["ranked_by"] for each in rows] == [ranked_by] * SAMPLES
        assert [each["value"] for each in rows] == [0.75, 0.5, 0.25]
        assert manifest.metrics["pearson"] == pytest.approx(1.0)
        assert manifest.metrics["pearson@0"] == manifest.metrics["pearson"]
        rewards[ranked_by] = [each["mean_reward"] for each in rows]
        traces = [each["traces"] for each in rows]
        if ranked_by == "token-matched":
            assert traces[0] < 6 and traces[1] == 6  # rank 2 has the fewest tokens
        else:
            assert traces == [6, 6, 5]
    # Samples 0, 1, 2 have rewards 0, -1, -2; q5 has no first one.
    assert rewards["reward"] == pytest.approx([-1 / 6, -7 / 6, -2])
    assert rewards["length"] == pytest.approx([-9 / 6, -9 / 6, 0])
    assert len({tuple(found) for found in rewards.values()}) == 4


def test_the_rank_of_another_launcher_is_ignored(
    given: tuple[Store, dict[str, Ref]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inside a training operator's pod, or a step of Slurm: all is computed, not a share."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    store, refs = given
    config = TraceGenerationConfig(
        sampling=GenerationConfig(n=2, max_tokens=4), split="train", format=FORMAT, seed=0
    )
    inputs = {"teacher": refs["model"], "questions": refs["questions"]}
    assert (
        run(node_spec(store, "trace-generation", config, inputs)).metrics["traces"] == 2 * QUESTIONS
    )


def test_a_vocabulary_is_compared_without_the_weights(tmp_path: Path) -> None:
    """On S3 they would be downloaded."""
    store = Store(str(tmp_path / "store"))
    attempt = store.begin(Ref(kind="model", key="a" * 16))
    PROMPTER.tokenizer.save_pretrained(attempt.out / "model")
    (attempt.out / "model" / "config.json").write_text('{"model_type": "llama"}')
    (attempt.out / "model" / "model.safetensors").write_bytes(b"weights")
    made = store.commit(sample_manifest(attempt.ref, attempt.id, store.describe(attempt)))
    (store.intact(made) / "model" / "model.safetensors").unlink()
    context: Any = SimpleNamespace(store=store, manifests={"traces": made})
    digest = vocabulary_digest(PROMPTER.tokenizer)
    assert student_sft._same_vocabulary(context, digest)
    assert not student_sft._same_vocabulary(context, "another")


def test_rlt_traces_says_what_a_student_learned_from(given: Any, taught: Any) -> None:
    """The traces that it chose from, by rank where it chose by reward, and how many it took."""
    narrow = SFT.model_copy(update={"max_tokens": len(row_of(2, TEXTS[2, 0]))})
    for choice in (
        {}, {"n_questions": 3}, {"rank": 2}, {"rank": 1, "order": "length", "n_questions": 4},
        {"rank": 3, "token_matched": True}, {"fits": True, "sft": narrow},
    ):  # fmt: skip
        manifest, rows, _ = taught(**choice)
        library = Library(given[0])
        found = library.learned(manifest.ref.key)
        assert found and found["count"] == len(rows), choice
        filters = {"run": found["scores"]}
        if found["rank"] and found["order"] == "reward":
            filters |= {"min-rank": str(found["rank"]), "max-rank": str(found["rank"])}
        listed = library.traces(filters, "highest")["rows"]
        names = rows_of(*(row["trace_id"].removeprefix("q") for row in listed))
        assert {tuple(each.input_ids) for each in rows} <= {tuple(each) for each in names}, choice
