"""`rlt teach`: questions of a file, explanations of a model or of an endpoint, the best as chat
data."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from flows.cli.teach import of_data
from rlt_core.errors import UserError
from rlt_core.rows import read_rows
from rlt_core.store import Store
from tests.chat_server import completion, serve
from tests.flows.conftest import Rlt

QUESTIONS = [{"problem": f"{a}+{a + 1}=", "answer": f"{2 * a + 1}"} for a in range(10, 16)]
MODELS = ("--teacher", "smoke/teacher-grpo@0", "--student", "smoke/base-model")
SMALL = (
    "--set", "trace_generation.max_tokens=200", "--set", "trace_generation.temperature=1.5",
    "--set", "trace_generation.dtype=float32", "--set", "trace_scoring.dtype=float32",
)  # fmt: skip
Teach = Callable[..., list[dict[str, object]]]


@pytest.fixture
def teach(rlt: Rlt, store: Path, tmp_path: Path) -> Teach:
    """Run the command on the questions and return the rows that it writes."""
    file = tmp_path / "own.csv"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["problem", "answer"])
        writer.writeheader()
        writer.writerows([*QUESTIONS, {"problem": "1+1=", "answer": ""}])

    def run(
        *arguments: str, status: int = 0, output: str = "out.jsonl", rlt: Rlt = rlt
    ) -> list[dict[str, object]]:
        out = tmp_path / output
        done = rlt("teach", str(file), "-o", str(out), "--store", str(store), *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        run.said = done.stdout + done.stderr  # type: ignore[attr-defined]
        if status:
            assert not out.exists()
            return []
        if out.suffix == ".parquet":
            return list(pq.read_table(out).to_pylist())
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def said(teach: Teach) -> str:
    return teach.said  # type: ignore[attr-defined, no-any-return]


def test_the_best_explanations_of_a_model_become_chat_data(
    teach: Teach, rlt_inside: Rlt, store: Path, tmp_path: Path
) -> None:
    rows = teach(*MODELS, *SMALL, "--samples", "4")
    opened = Store(str(store))
    (scores,) = [one for one in opened.manifests("scores") if one.label == "trace-scoring[teach]"]
    scored = read_rows(opened.intact(scores, ".parquet"), "scores")
    (chosen,) = [one for one in opened.manifests("traces") if one.stage == "trace-selection"]
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["question"] in row["messages"][0]["content"]
        assert row["explanation"] in row["messages"][1]["content"]
        assert row["messages"][1]["content"].rstrip().endswith("</solution>")
        group = [one for one in scored if one["question_id"] == row["question_id"]]
        eligible = [one["reward"] for one in group if not one["clipped"]]
        assert row["reward"] == max(eligible) and row["r_kl"] is not None
        assert row["run"] == chosen.ref.key and row["teacher"] and row["student"]
    assert len(rows) == chosen.metrics["kept"] == chosen.metrics["questions"] > 0
    for told in ("left out: empty 1", "reward of the best", "above the mean", "best, reward"):
        assert told in said(teach)
    hub = ("export", "hub", "--what", "traces", "--to", str(tmp_path / "hub"))
    done = rlt_inside(*hub, "teach/trace-selection[teach]@0", "--store", str(store))
    assert done.returncode == 0, done.stderr
    exported = load_dataset(str(tmp_path / "hub"), split="train")
    assert exported["reward"] == [row["reward"] for row in rows]
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "rows.filter" not in card, "all of them were chosen"
    # Once more nothing is computed; another selection computes nothing but itself.
    teach(*MODELS, *SMALL, "--samples", "4", output="again.parquet")
    assert "0 to compute" in said(teach)
    assert (tmp_path / "out.jsonl").exists()
    two = teach(*MODELS, *SMALL, "--samples", "4", "--keep", "2", output="two.parquet")
    assert "2 to compute" in said(teach) and len(two) > len(rows)
    assert two[0].keys() == rows[0].keys()
    first = [row["reward"] for row in two if row["question_id"] == two[0]["question_id"]]
    assert f"best, reward {max(first):.3f}" in said(teach)
    loaded = load_dataset("json", data_files=str(tmp_path / "out.jsonl"), split="train")
    assert loaded["messages"] == [row["messages"] for row in rows]
    alone = teach(*MODELS, *SMALL, "--samples", "4", "--set", "data.n_train=1", output="one.jsonl")
    assert len(alone) <= 1 and "inf" not in said(teach)
    teach(*MODELS, *SMALL, "--samples", "4", "--max-student-tokens", "3", status=2,
          output="none.jsonl")  # fmt: skip
    assert "no explanation can be kept (" in said(teach) and "too_long: " in said(teach)


def test_columns_that_are_named_are_not_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"q": "1+1=", "s": "2"}\n')
    with pytest.raises(UserError, match=r"the question and the solution; .*data\.fields\.question"):
        of_data(file, ["seeds=[1]"])
    given = ["data.fields.question=q", "data.fields.solution=s"]
    assert of_data(file, given) == {"data.source": str(file)}


def test_an_endpoint_teaches_and_its_part_of_the_reward_is_unknown(
    teach: Teach, rlt_inside: Rlt, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--teacher", "endpoint:org/some-model", "--student", "smoke/base-model")
    monkeypatch.delenv("RLT_REFINE_BASE_URL", raising=False)
    teach(*model, "--samples", "2", status=2, rlt=rlt_inside)
    assert "RLT_REFINE_BASE_URL is not set" in said(teach)
    with serve(lambda number, _: completion(f"step {number} of it")) as endpoint:
        monkeypatch.setenv("RLT_REFINE_BASE_URL", endpoint.url)
        monkeypatch.setenv("RLT_REFINE_KEY", "none")
        teach(*model, "--samples", "2", "--budget-tokens", "1", status=2)
        assert "budget" in said(teach)
        rows = teach(*model, "--samples", "2")
    assert len(endpoint.seen) == 2 * len(QUESTIONS)  # none was asked again
    assert len(rows) == len(QUESTIONS) and "r_KL is unknown" in said(teach)
    assert "12 requests" in said(teach) and "no prices are set" in said(teach)
    for row in rows:
        assert row["r_kl"] is None and row["kl_mean"] is None
        assert row["reward"] == row["r_ss"] and row["teacher"] == "org-some-model"


def test_what_cannot_be_taught_is_said_in_a_line(
    teach: Teach, rlt_inside: Rlt, tmp_path: Path
) -> None:
    refused = partial(teach, status=2, rlt=rlt_inside)
    refused("--teacher", "no-such-model", "--student", "smoke/base-model")
    assert "--teacher no-such-model" in said(teach)
    refused("--teacher", "no-such-org/no-model", "--student", "smoke/base-model")
    assert "no-such-org/no-model" in said(teach) and "HF_HUB_OFFLINE" in said(teach)
    refused(*MODELS, "--budget-usd", "1")
    assert "--budget-tokens" in said(teach)
    refused(*MODELS, "--set", "seeds=[0,1]")
    assert "one at a time" in said(teach)
    refused("--teacher", "smoke/teacher-grp", "--student", "smoke/base-model")
    assert "no artifact 'smoke/teacher-grp'" in said(teach) and "the hub," in said(teach)
    refused(*MODELS, output="out.txt")
    assert ".jsonl or .parquet" in said(teach)
    refused(*MODELS, "--samples", "2", "--keep", "3")
    assert "only 2 are written" in said(teach)
    for text, told in (('{"question": "1+1"}\n', "no column looks like the solution"), ("", "")):
        file = tmp_path / "bad.jsonl"
        file.write_text(text)
        done = rlt_inside("teach", str(file), *MODELS, "-o", str(tmp_path / "o.jsonl"))
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_teachers_are_compared_for_students(
    rlt: Rlt, rlt_inside: Rlt, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"question": f"{a}+{a + 2}=", "solution": f"{2 * a + 2}"} for a in range(10, 22)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = (
        "bench", "teachers", str(file), "--teachers", "smoke/teacher-grpo@0,endpoint:some-llm",
        "--students", "smoke/base-model,smoke/student-sft[rlt]@0", "--samples", "2", "--train",
        "--set", "data.n_test=4", "--store", str(store),
        "--set", "student_sft.dtype=float32", "--set", "student_sft.lora=null", *SMALL,
        "--set", "evaluation.max_tokens=16", "--set", "evaluation.dtype=float32", "--json",
    )  # fmt: skip
    with serve(lambda *_: completion("a step")) as endpoint:
        monkeypatch.setenv("RLT_REFINE_BASE_URL", endpoint.url)
        monkeypatch.setenv("RLT_REFINE_KEY", "none")
        done = rlt(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(row["teacher"], row["student"]): row for row in json.loads(done.stdout)}
    students = ("smoke-base-model", "smoke-student-sft-rlt-0")
    teachers = ("smoke-teacher-grpo-0", "some-llm")
    assert set(found) == {(teacher, student) for teacher in teachers for student in students}
    for (teacher, _), row in found.items():
        assert row["low"] <= row["reward"] <= row["high"] and row["rank_surprisal"] > 0
        assert (row["r_kl"] is None) == (teacher == "some-llm")
        assert len(row["before"]) == len(row["after"]) == 3
    shown = rlt_inside(*command[:-1])
    assert shown.returncode == 0 and "% after training" in shown.stdout
    refused = rlt_inside("bench", "teachers", str(file), "--teachers", "smoke/base-model",
                         "--students", "endpoint:m", "--store", str(store))  # fmt: skip
    assert refused.returncode == 2 and "log-probs are needed" in refused.stderr
