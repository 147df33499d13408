"""`rlt score`, `rlt reward score`, `score_explanations`: a row out for a row in, resumed where it
was, mistakes in one line."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from flows.cli.app import app
from rlt_core import score_explanations
from rlt_core.config import RewardSpec, ScratchModel, StageResources
from rlt_core.errors import Stopped, UserError
from rlt_core.explanations import ModelPair
from rlt_core.models import load_model, load_tokenizer, new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import FOLDER, RECORD, load_format, record_format
from rlt_core.reward.formula import reward_parts
from rlt_core.sql.schemas import SCORES
from rlt_core.store import Ref, Store
from tasks.score_file import score_file
from tests.hub_cache import COMMIT
from tests.tasks.nodes import committed

ROWS = [
    {"question": "1+1?", "solution": "2", "explanation": "one and one"},
    {"question": "2+3?", "solution": "5", "explanation": "two, three", "closed": False},
    {"question": "1+1?", "solution": "2", "explanation": "", "closed": True},
    {"question": "1+1?", "solution": "two", "explanation": "é 😀 <|im_end|>"},
    {"question": "1+1?", "solution": "2", "explanation": "x" * 600},
]


def folder(path: Path, seed: int, format: str = "rlt") -> Path:
    tokenizer = tiny_tokenizer(load_format(format))
    shape = ScratchModel(layers=1, width=16, heads=2, seed=seed, max_positions=2000)
    save_model(new_model(shape, tokenizer), tokenizer, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("models")
    return folder(place / "teacher", 1), folder(place / "student", 2)


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(models: tuple[str | Path, Path], *options: str) -> Any:
    return CliRunner().invoke(
        app, ["reward", "score", "--teacher", str(models[0]), "--student", str(models[1]), *options]
    )


def pair(models: tuple[Path, Path], size: int = 64) -> ModelPair:
    resources = StageResources(device="cpu", shard_questions=size)
    return ModelPair(*models, load_format("rlt"), RewardSpec(), "float32", resources)


def test_a_row_out_for_a_row_in(models: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = written(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores.parquet"
    done = call(models, "--input", str(source), "--output", str(output), "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["rows"], said["scored"], said["too_long"]) == (5, 5, 0)
    table = pq.read_table(output)
    texts = ("question", "solution", "explanation")
    assert table.select(SCORES.names).schema.equals(SCORES)
    rows = table.to_pylist()
    assert [{name: row[name] for name in texts} for row in rows] == [
        {name: row[name] for name in texts} for row in ROWS
    ]
    by_reward = sorted(range(1, 6), key=lambda number: -rows[number - 1]["reward"])
    assert [row["row"] for row in said["best"] + said["worst"]] == by_reward
    assert said["kl"] == "full" and "not the teacher's samples" in done.stderr
    assert said["mean_reward"] == pytest.approx(sum(row["reward"] for row in rows) / 5)
    for row, given in zip(rows, ROWS, strict=True):
        parts = reward_parts(
            row["student_solution_logprobs"], row["student_think_logprobs"],
            row["teacher_think_logprobs"], given.get("closed", True), RewardSpec(kl="full"),
            row["think_kl"],
        )  # fmt: skip
        assert row["reward"] == parts.reward
        assert row["solution_tokens"] == len(str(given["solution"]))
    assert [row["sample"] for row in rows] == [0, 0, 1, 0, 2]  # another solution, another group
    assert sorted(rows[i]["rank"] for i in (0, 2, 4)) == [1, 2, 3]
    assert rows[1]["penalty"] == -1 and rows[2]["kl_mean"] == 1
    assert sorted(tmp_path.iterdir()) == [source, output]


def test_columns_may_have_other_names_and_every_format_has_the_same_rows(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    rows = [{"problem": r["question"], "meta": {"answer": r["solution"]}, "text": r["explanation"]}
            for r in ROWS[:3]]  # fmt: skip
    source = written(tmp_path / "rows.jsonl", rows)
    fields = ["question=problem", "solution=meta.answer", "explanation=text"]
    options = [option for field in fields for option in ("--field", field)]
    outputs = [tmp_path / f"scores.{suffix}" for suffix in ("parquet", "csv", "jsonl")]
    for output in outputs:
        done = call(models, "-i", str(source), "-o", str(output), *options)
        assert done.exit_code == 0, done.output
        assert "best and worst explanations" in done.stdout and "one and one" in done.stdout
    with outputs[1].open(newline="") as file:
        as_csv = list(csv.DictReader(file))
    as_json = [json.loads(line) for line in outputs[2].read_text().splitlines()]
    assert as_json == pq.read_table(outputs[0]).to_pylist()
    assert [float(row["reward"]) for row in as_csv] == [row["reward"] for row in as_json]
    assert [row["explanation"] for row in as_csv] == [row["text"] for row in rows]


def test_a_model_in_the_store_has_its_name(models: tuple[Path, Path], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    ref = Ref(kind="model", key="0" * 16)
    committed(store, ref, lambda out: shutil.copytree(models[0], out / "model"))
    store.set_ref("tiny/teacher-grpo@0", ref)
    source, output = written(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "scores.jsonl"
    options = ["-i", str(source), "-o", str(output), "--store", str(store)]
    rewards = []
    for teacher in (str(models[0]), "tiny/teacher-grpo@0", "000"):
        done = call((teacher, models[1]), *options)
        assert done.exit_code == 0, done.output
        row = json.loads(output.read_text())
        rewards.append(row["reward"])
        assert row["teacher"] == (teacher if teacher != str(models[0]) else "teacher")
    assert len(set(rewards)) == 1
    done = call(("tiny/teacher-grpo", models[1]), *options)
    assert isinstance(done.exception, UserError)
    assert "not a model folder, and no artifact 'tiny/teacher-grpo'" in str(done.exception)


def test_the_reward_is_the_callers_to_choose(models: tuple[Path, Path], tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", ROWS[:1])
    rewards = {}
    for name, options in {
        "plain": [], "reference": ["--preset", "reference-code"], "free": ["--lambda", "0"],
        "k1": ["--kl", "k1"], "hot": ["--temperature", "2"],
    }.items():  # fmt: skip
        output = tmp_path / f"{name}.parquet"
        done = call(models, "-i", str(source), "-o", str(output), *options)
        assert done.exit_code == 0, done.output
        assert ("warning: r_KL by k1" in done.stderr) is (name == "k1")
        table = pq.read_table(output)
        (rewards[name],) = table.to_pylist()
        used = json.loads(table.schema.metadata[b"rlt.reward"])["kl"]
        assert used == ("k1" if name == "k1" else "full")
    assert rewards["plain"] == rewards["reference"]
    assert rewards["free"]["reward"] == rewards["plain"]["r_ss"]
    full = rewards["plain"]
    assert full["kl_mean"] == pytest.approx(sum(full["think_kl"]) / len(full["think_kl"]))
    assert min(full["think_kl"]) >= 0 and rewards["k1"]["think_kl"] is None
    assert rewards["hot"]["temperature"] == 2
    assert rewards["hot"]["reward"] != rewards["plain"]["reward"]


EXPLANATIONS = (
    "15+30=45, 45+62=107", "15+30=45, 45+62=106", "107", "hello, the answer is 107",
)  # fmt: skip


def test_no_explanation_earns_by_being_unlikely_to_the_teacher(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    """r_KL is a divergence, so that a text from outside cannot have more than its r_SS."""
    sure = []
    for name, path in zip(("teacher", "student"), models, strict=True):
        model, tokenizer = load_model(path, "float32"), load_tokenizer(path)
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(4)
        save_model(model, tokenizer, tmp_path / name)
        sure.append(tmp_path / name)
    task = {"question": "15+30+62=?", "solution": "107"}
    source = written(tmp_path / "rows.jsonl", [task | {"explanation": e} for e in EXPLANATIONS])
    output, gains = tmp_path / "scores.parquet", {}
    for kl in ("default", "full", "k1"):
        options = [] if kl == "default" else ["--kl", kl]
        done = call((sure[0], sure[1]), "-i", str(source), "-o", str(output), *options)
        assert done.exit_code == 0, done.output
        rows = pq.read_table(output).to_pylist()
        gains[kl] = [row["reward"] - row["r_ss"] for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -rows[i]["reward"])
        assert [rows[i]["rank"] for i in order] == [1, 2, 3, 4]
    assert gains["default"] == gains["full"] and max(gains["full"]) < 0
    assert max(gains["k1"]) > 1  # what the default must not be


def test_a_format_is_a_file(models: tuple[Path, Path], tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", ROWS)
    own = tmp_path / "own.json"
    shutil.copy(FOLDER / "rlt.json", own)
    outputs = []
    for name, format in (("a", "rlt"), ("b", str(own))):
        output = tmp_path / f"{name}.parquet"
        done = call(models, "-i", str(source), "-o", str(output), "--prompt-format", format)
        assert done.exit_code == 0, done.output
        outputs.append(pq.read_table(output).to_pylist())
    assert outputs[0] == outputs[1]
    own.write_text('{"name": "own"}')
    done = call(models, "-i", str(source), "-o", str(tmp_path / "c.parquet"), "--prompt-format",
                str(own))  # fmt: skip
    assert isinstance(done.exception, UserError) and "teacher_system" in str(done.exception)


def test_a_stopped_call_goes_on_where_it_was(models: tuple[Path, Path], tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", ROWS)
    whole = score_file(pair(models), source, tmp_path / "whole.parquet", Progress())
    output = tmp_path / "broken.parquet"
    seen: list[int] = []

    def progress(done: int, total: int, metrics: Any) -> None:
        seen.append(done)

    stop = Progress(progress, should_stop=lambda: len(seen) >= 5)
    with pytest.raises(Stopped):
        score_file(pair(models, size=1), source, output, stop)
    assert not output.exists() and (tmp_path / "broken.parquet.work").is_dir()
    before = len(seen)
    table = score_file(pair(models, size=1), source, output, Progress(progress))
    assert table.drop_columns(["rank"]).num_rows == whole.num_rows
    for one, other in zip(table.to_pylist(), whole.to_pylist(), strict=True):
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert (one["trace_id"], one["rank"]) == (other["trace_id"], other["rank"])
    assert min(seen[before:]) > 0  # the first shard was not done again
    assert not (tmp_path / "broken.parquet.work").exists()


def test_what_is_too_long_is_said(models: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [*ROWS[:1], ROWS[4] | {"explanation": "y" * 2000}]
    source, output = written(tmp_path / "rows.jsonl", rows), tmp_path / "scores.parquet"
    done = call(models, "-i", str(source), "-o", str(output))
    assert done.exit_code == 0 and "too_long 1" in done.output
    assert [row["status"] for row in pq.read_table(output).to_pylist()] == ["scored", "too_long"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"solution": "2", "explanation": ""}, "row 2: no field 'question'"),
        ({"question": "q", "solution": "", "explanation": "e"}, "row 2: empty solution"),
        ({"question": "q", "solution": [2], "explanation": "e"}, "row 2: the solution (field"),
        ({**ROWS[0], "closed": "perhaps"}, "row 2: closed must be true or false"),
        ({**ROWS[0], "explanation": "so<|end_of_explanation|>"}, "row 2: the explanation contains"),
        ({**ROWS[0], "solution": "<|end_of_solution|>"}, "row 2: the solution contains"),
        ("text", "row 2: expected an object"),
    ],
)
def test_a_bad_row_is_named(
    models: tuple[Path, Path], tmp_path: Path, row: Any, message: str
) -> None:
    source, output = written(tmp_path / "rows.jsonl", [ROWS[0], row]), tmp_path / "scores.parquet"
    done = call(models, "-i", str(source), "-o", str(output))
    assert isinstance(done.exception, UserError) and message in str(done.exception)
    assert not output.exists()


def test_bad_models_and_options_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = written(tmp_path / "rows.jsonl", ROWS[:1]), tmp_path / "scores.parquet"
    files = ["-i", str(source), "-o", str(output)]
    (tmp_path / "folder.csv").mkdir()
    other = folder(tmp_path / "other", 3, "r1")
    for teacher, message in [
        (other, "different vocabularies"),
        (tmp_path / "none", "not a model folder"),
        (tmp_path, "not a model folder"),
    ]:
        done = call((teacher, models[1]), *files)
        assert isinstance(done.exception, UserError) and message in str(done.exception)
    for options, message in [
        (["--preset", "ours"], "paper, reference-code"),
        (["--temperature", "0"], "temperature"),
        (["-o", str(tmp_path / "scores.txt")], "end its name in .parquet or .csv or .jsonl"),
        (["-o", str(tmp_path / "folder.csv")], "this is a folder"),
        (["-o", str(tmp_path / ".." / tmp_path.name / "rows.jsonl")], "the file that is read"),
        (["--field", "question"], "write FIELD=COLUMN"),
        (["--field", "explanation=text"], "no field 'text'; it has question, solution, explan"),
        (["-o", str(tmp_path / "no" / "scores.parquet")], "there is no folder"),
        (["-i", str(tmp_path / "no.jsonl")], "no such file"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "torch finds no GPU")]),
    ]:
        done = call(models, *files, *options)
        assert isinstance(done.exception, UserError) and message in str(done.exception), message
    assert not output.exists()


def test_a_model_of_another_format_is_refused_with_the_fix(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    source, student = written(tmp_path / "rows.jsonl", ROWS[:1]), folder(tmp_path / "student", 3)
    trained = load_format("rlt").model_copy(update={"student_system": "Think.", "name": "own"})
    record_format(student, trained)
    both = (models[0], student)
    options = ["-i", str(source), "-o", str(tmp_path / "scores.parquet")]
    done = call(both, *options)
    assert isinstance(done.exception, UserError)
    fix = f"add --prompt-format {student / RECORD}, or --allow-other-format"
    assert f"own and is to be used with rlt, which differs in student_system: {fix}" in str(
        done.exception
    )
    for more in (["--prompt-format", str(student / RECORD)], ["--allow-other-format"]):
        assert call(both, *options, *more).exit_code == 0


def test_python_scores_rows_as_the_command_does(models: tuple[Path, Path], tmp_path: Path) -> None:
    source, output = written(tmp_path / "rows.jsonl", ROWS), tmp_path / "scores.parquet"
    files = ["-i", str(source), "-o", str(output)]
    pair = ["--teacher", str(models[0]), "--student", str(models[1])]
    done = CliRunner().invoke(app, ["score", *pair, *files])
    assert done.exit_code == 0, done.output
    expected = pq.read_table(output).to_pandas()
    names = {"question": "problem", "solution": "meta.answer", "explanation": "text"}
    given = pd.DataFrame(
        [
            {"problem": row["question"], "meta": {"answer": row["solution"]}, "id": number,
             "text": row["explanation"], "closed": row.get("closed"), "reward": 7.0}
            for number, row in enumerate(ROWS)
        ],
        index=[10 * number for number in range(len(ROWS))],
    )  # fmt: skip
    for found in (
        score_explanations(ROWS, *models),
        score_explanations(iter(ROWS), *map(str, models)),
        score_explanations(given, *models, columns=names),
    ):
        for name in ("reward", "r_ss", "r_kl", "think_mean"):
            assert found[name].to_numpy() == pytest.approx(
                expected[name].to_numpy(), abs=1e-4, nan_ok=True
            )
        for name in ("rank", "status", "think_tokens", "penalty"):
            assert found[name].tolist() == expected[name].tolist()
    assert found.index.equals(given.index) and found["id"].equals(given["id"])
    assert (given["reward"] == 7.0).all(), "the rows that were given stay as they were"
    assert not {"student_think_logprobs", "trace_id"} & set(found.columns)
    free = score_explanations(ROWS, *models, reward=RewardSpec(kl_weight=0))
    scored = free["status"] == "scored"
    assert (free["reward"] - free["r_ss"] - free["penalty"])[scored].abs().max() < 1e-9


def test_python_names_a_bad_row_or_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    for rows, message in (
        ([ROWS[0], {"solution": "2"}], "row 2: empty question"),
        ([{"problem": "2"}], r"row 1: no field 'question'; .*columns=\{'question': COLUMN\}"),
        ([], "there is no row"),
    ):
        with pytest.raises(UserError, match=message):
            score_explanations(rows, *models)
    store = str(tmp_path / "store")
    for name, message in (
        ("tiny/none", "teacher tiny/none: not a model folder, and no artifact"),
        ("package:not_there", "not_there is not installed"),
        ("folder:not_there", "no model can be read from it"),
        ("hub:org/name", "no commit is pinned"),
    ):
        with pytest.raises(UserError, match=message):
            score_explanations(ROWS, name, models[1], store=store)


def test_a_model_of_the_hubs_cache_scores(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(models[0], tmp_path / "models--org--name" / "snapshots" / COMMIT)
    rewards = [
        score_explanations(ROWS[:2], teacher, models[1])["reward"].tolist()
        for teacher in (models[0], f"hub:org/name@{COMMIT}", f"folder:{models[0]}")
    ]
    assert rewards[0] == rewards[1] == rewards[2]


def test_models_of_two_tokenizers_score_by_text(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = folder(tmp_path / "other", 3, "r1")
    source, output = written(tmp_path / "rows.jsonl", ROWS[:3]), tmp_path / "scores.parquet"
    files = ["-i", str(source), "-o", str(output), "--alignment", "text"]
    done = call((other, models[1]), *files)
    assert done.exit_code == 0 and "r_KL by k3" in done.stderr, done.output
    rewards = pq.read_table(output)["reward"].to_pylist()
    spec = RewardSpec(kl="k3", alignment="text")
    found = score_explanations(ROWS[:3], other, models[1], reward=spec)
    assert found["reward"].tolist() == pytest.approx(rewards, abs=1e-4)
    done = call(models, *files, "--kl", "full")
    assert isinstance(done.exception, UserError)
    assert "reward: kl=full compares whole vocabularies" in str(done.exception)


def test_importing_the_package_imports_nothing_that_computes() -> None:
    program = (
        "import sys, rlt_core; rlt_core.__version__; "
        "assert not {'torch', 'pandas', 'pyarrow', 'pydantic'} & set(sys.modules); "
        "assert not hasattr(rlt_core, 'other')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
