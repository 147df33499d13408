"""An explanation names the tokens that made a reward, in their own words."""

import itertools
import shutil

import numpy as np
import pytest

from rlt_core.config import RewardSpec
from rlt_core.errors import UserError
from rlt_core.explain import AROUND, Explained, explain, take_apart
from rlt_core.models import tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.scoring import assign_ranks
from rlt_core.store import Ref, Store
from tests.sample_store import commit, row, score_row

FORMAT = load_format("rlt")
TEXT = "first <think> of pi, é [bold]"
SOLUTION = "6 * 7 = 42 <|im_end|>"
TRACE = "q001-1"


def with_tokenizer(store):
    """A model artifact that holds a tokenizer of single bytes, and the renderer of it."""
    tokenizer = tiny_tokenizer(FORMAT)
    template = commit(store, "base-model", {})
    attempt = store.begin(Ref(kind="model", key="f" * 16))
    tokenizer.save_pretrained(attempt.out / "model")
    update = {"ref": attempt.ref, "attempt": attempt.id, "files": store.describe(attempt)}
    return store.commit(template.model_copy(update=update)), Renderer(FORMAT, tokenizer)


def scored(store, spec=None, label="trace-scoring[a]", without=()):
    """Four traces of one question, scored with log-probs at random; `without`: lost inputs."""
    spec = spec or RewardSpec()
    model, renderer = with_tokenizer(store)
    ids = renderer.encode(TEXT)
    solution = renderer.encode(SOLUTION)
    traces, scores, draw = [], [], np.random.default_rng(1)
    for sample in range(4):
        name, think_ids = f"q001-{sample}", [] if sample == 3 else ids
        traces.append(row("traces", trace_id=name, question_id="q001", token_ids=think_ids))
        length = len(think_ids)
        sizes = (len(solution), length, length, length)
        lists = [-draw.exponential(size=size).astype(np.float32) for size in sizes]
        full = [-value for value in lists[3].tolist()] if spec.kl == "full" else None
        parts = reward_parts(*lists[:3], sample != 2, spec, full)
        names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
        given = {name: values.tolist() for name, values in zip(names, lists[:3], strict=True)}
        values = vars(parts) | given | {"think_kl": full, "closed": sample != 2}
        values |= {"think_tokens": len(think_ids), "solution_tokens": len(solution), "seed": 0}
        scores.append(score_row(1, parts.reward, sample) | values)
    scores.append(score_row(1, None, 4, seed=0, penalty=None, student_solution_logprobs=None))
    scores.append(score_row(2, 5.0, 0, seed=0))
    inputs = {
        "teacher": model,
        "traces": commit(store, "trace-generation[a]", {"traces": traces}),
        "questions": commit(
            store, "dataset-prep",
            {"questions": [row("questions", question_id="q001", question="q", solution=SOLUTION)]},
        ),
    }  # fmt: skip
    manifest = commit(
        store, label, {"scores": assign_ranks(scores)}, seed=0, shards=2,
        inputs={name: one for name, one in inputs.items() if name not in without},
        config={"reward": spec.model_dump(), "format": FORMAT.model_dump()},
    )  # fmt: skip
    return manifest, next(one for one in scores if one["trace_id"] == TRACE)


@pytest.mark.parametrize(
    "spec",
    [
        RewardSpec(),
        RewardSpec(alpha=0.5, kl_weight=1, kl="k3", solution_reduction="median"),
        RewardSpec(kl="full", think_extreme="sum", clip_logprob=0.5),
    ],
)
def test_the_parts_add_up_to_the_reward(tmp_path, spec):
    store = Store(str(tmp_path))
    manifest, stored = scored(store, spec)
    found = explain(store, TRACE)
    assert found.manifest == manifest
    assert found.row["reward"] == stored["reward"]
    assert sum(part.contribution for part in found.parts) == pytest.approx(stored["reward"])
    assert [part.value for part in found.parts] == [
        stored[name] for name in ("solution_mean", "solution_min", "kl_mean", "kl_max", "penalty")
    ]
    shares = [token.share for token in (*found.explanation, *found.solution)]
    assert sum(shares) + stored["penalty"] == pytest.approx(stored["reward"])
    framed = {token.sets: token for token in (*found.explanation, *found.solution) if token.sets}
    floor = -(spec.clip_logprob or np.inf)
    assert framed["min"] == min(found.solution, key=lambda token: max(token.student, floor))
    if spec.think_extreme == "max":
        assert framed["max"] == found.most_surprising
    unclosed = explain(store, "q001-2")
    assert unclosed.parts[-1].contribution == -1


def test_tokens_are_the_worst_and_stand_in_their_text(store_root):
    store = Store(store_root)
    _, stored = scored(store)
    found = explain(store, TRACE)
    solution = np.array(stored["student_solution_logprobs"])
    student = np.array(stored["student_think_logprobs"])
    teacher = np.array(stored["teacher_think_logprobs"])
    worst = found.worst_solution
    assert worst.student == solution.min() and worst.position == solution.argmin()
    assert worst.text == SOLUTION[worst.position]
    gap = teacher - student
    assert found.most_surprising.kl == max(gap)
    written = "".join(token.text for token in found.explanation)
    assert "�" in written and written.startswith("first <think> of pi, ")
    assert [token.student for token in found.explanation] == list(student)
    assert "".join(token.text for token in found.solution) == SOLUTION
    assert found.question == "q"
    whole = TEXT.encode()
    for token in found.explanation:
        place = token.position
        assert (token.student, token.teacher) == (student[place], teacher[place])
        assert token.kl == gap[place]
        around = whole[max(0, place - AROUND) : place + AROUND + 1].decode(errors="replace")
        if around.isascii():
            assert token.text == whole[place : place + 1].decode(errors="replace")


def test_an_empty_explanation_has_no_tokens(tmp_path):
    store = Store(str(tmp_path))
    scored(store)
    found = explain(store, "q001-3")
    assert found.most_surprising is None
    assert found.parts[2].value == 1.0 and found.worst_solution.text in SOLUTION


def test_what_has_left_the_store_is_shown_by_position(tmp_path):
    for number, without in enumerate(
        itertools.chain.from_iterable(
            itertools.combinations(("teacher", "traces", "questions"), size) for size in (1, 2, 3)
        )
    ):
        store = Store(str(tmp_path / str(number)))
        _, stored = scored(store, without=without)
        found = explain(store, TRACE)
        assert found.worst_solution.position == np.argmin(stored["student_solution_logprobs"])
        known = not {"teacher", "questions"} & set(without)
        assert (found.worst_solution.text == "?") is not known
        if "traces" in without:
            assert {token.text for token in found.explanation} == {"?"}
        elif "teacher" in without:
            ids = [token.text for token in found.explanation]
            assert ids and all(one.strip().isdigit() for one in ids)


def test_a_trace_without_log_probs_is_shown_with_what_there_is(tmp_path):
    store = Store(str(tmp_path))
    scored(store)
    too_long = explain(store, "q001-4")
    assert too_long.row["status"] == "too_long"
    assert too_long.parts == [] and too_long.worst_solution is None
    imported = commit(store, "trace-scoring[imported]", {"scores": [score_row(7, -2.0, rank=1)]})
    found = explain(store, "q007-0")
    assert (found.manifest, found.parts) == (imported, [])


def test_of_several_artifacts_the_newest_unless_one_is_named(tmp_path):
    store = Store(str(tmp_path))
    manifest, _ = scored(store)
    older, newer = (
        manifest.model_copy(
            update={
                "ref": manifest.ref.model_copy(update={"key": digit * 16}),
                "finished_at": manifest.finished_at.replace(year=year),
            }
        )
        for digit, year in (("1", 2025), ("2", 2027))
    )
    for copy in (older, newer):
        folder = store.files.local(store.folder(copy))
        shutil.copytree(store.files.local(store.folder(manifest)), folder)
        assert store.publish(copy)
    found = explain(store, TRACE)
    assert found.manifest == newer
    named = explain(store, TRACE, "1" * 6)
    assert named.manifest == older


def test_mistakes_say_what_is_nearest(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match="no trace has been scored yet"):
        explain(store, TRACE)
    manifest, _ = scored(store)
    with pytest.raises(UserError, match=r"'q001-11'.*nearest: q001-1, .*rlt sql"):
        explain(store, "q001-11")
    with pytest.raises(UserError, match=rf"'q009-0' in trace-scoring\[a\] \({manifest.ref.key}"):
        explain(store, "q009-0", manifest.ref.key)
    with pytest.raises(UserError, match="is of kind model, not scores"):
        explain(store, TRACE, "f" * 16)
    with pytest.raises(UserError, match="no artifact 'nothing'"):
        explain(store, TRACE, "nothing")


def test_a_damaged_file_is_one_clear_error(tmp_path):
    store = Store(str(tmp_path))
    manifest, _ = scored(store)
    for file in (store.intact(manifest) / "scores").iterdir():
        file.write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"(?s)cannot be read.*rlt artifacts verify"):
        explain(store, TRACE)


def test_a_users_own_reward_is_no_sum_of_ours(tmp_path):
    store = Store(str(tmp_path))
    manifest, _ = scored(store)
    own = manifest.model_copy(
        update={"config": {"reward": manifest.config["reward"] | {"function": "mine:reward"}}}
    )

    def find(table, run, name):
        return None

    row = explain(store, TRACE).row
    found = take_apart(store, find, Explained(own, row), RewardSpec())
    assert found.parts == [] and found.explanation and found.solution
    assert {token.share for token in (*found.explanation, *found.solution)} == {None}
