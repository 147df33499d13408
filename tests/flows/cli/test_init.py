"""`rlt init` writes a config that reads the file."""

import json
from pathlib import Path
from typing import Any

import gpu_driver
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.cli.init import gpu_gib
from rlt_core.config import Config
from rlt_core.data.sources import read_source
from rlt_core.errors import UserError
from rlt_core.overrides import load_config, read_config


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(tmp_path: Path, file: Path, *options: str) -> tuple[Config, str]:
    output = tmp_path / "rlt.toml"
    arguments = ["init", str(file), "--output", str(output), *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    profile, changes = read_config(output)
    assert profile
    return load_config(profile, changes), done.stdout


@pytest.mark.parametrize(
    ("row", "trace"),
    [
        ({"question": "1+1?", "answer": "one and one\n#### 2"}, "one and one"),
        ({"Problem": "1+1?", "Final_Answer": "2", "reasoning": "count"}, "count"),
        ({"instruction": "1+1?", "output": "2", "input": ""}, None),
        ({"problem": "1+1?", "answer": "2"}, None),
        ({"problem": "1+1?", "answer": "2", "reasoning": "count"}, "count"),
        ({"prompt": "1+1?", "completion": "one and one\n#### 2", "cot": "no"}, "one and one"),
        ({"prompt": "1+1?", "completion": "2", "cot": "count"}, "count"),
        ({"messages": [{"role": "user", "content": "1+1?"},
                       {"role": "assistant", "content": "2"}]}, None),
    ],
)  # fmt: skip
def test_the_config_reads_question_solution_and_trace(
    row: dict[str, Any], trace: str | None, tmp_path: Path
) -> None:
    config, said = made(tmp_path, write(tmp_path / 'my "rows".jsonl', [row] * 20))
    (first, *_) = read_source(config.data).rows
    assert (first.question, first.solution, first.trace) == ("1+1?", "2", trace)
    assert config.data.n_validation + config.data.n_test < 20
    assert "20 usable questions" in said


@pytest.mark.parametrize(("answer", "expected"), [("2", "2"), (2, "2"), ({"value": 2}, None)])
def test_the_answer_beside_a_solution_is_read(
    answer: Any, expected: str | None, tmp_path: Path
) -> None:
    row = {"question": "1+1?", "solution": "It is two.", "answer": answer}
    config, _ = made(tmp_path, write(tmp_path / "rows.jsonl", [row] * 20))
    (first, *_) = read_source(config.data).rows
    assert (first.solution, first.answer) == ("It is two.", expected)


def test_unusable_rows_are_told_and_allowed_and_a_test_file_is_used(tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1?", "solution": "" if n % 4 == 0 else "3"} for n in range(400)]
    file, test = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[1:2])
    config, said = made(tmp_path, file, "--test", str(test))
    assert "300 usable questions, 100 unusable" in said
    assert "empty: 100, first in row 1" in said
    assert len(read_source(config.data).rows) == 300
    assert config.data.test_source == str(test)
    assert (config.profile, config.data.n_train, config.data.n_test) == ("laptop", 32, 16)
    assert config.teacher_sft.traces == "none"  # the file has none


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1, "b": 2}], "the question and the solution; it has a, b"),
        (
            [{"question": "1+1?", "b": 2}],
            r"the solution; .*data\.fields\.solution",
        ),
        ([{"question": "", "solution": "2"}], "no usable row; row 1: .*empty"),
        ([], "no row"),
        ([{"question": "1+1?", "choices": ["1", "2"], "answer": 1}], "'choices' has the options"),
        (["# a comment", "no JSON"], "row 1: expected an object with fields"),
        ([{"question": "1+1?", "solution": "2"}] * 2, "2 usable questions; 3 are needed"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    rows: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path, write(tmp_path / "a.jsonl", rows))
    assert not (tmp_path / "rlt.toml").exists()


def test_bad_rows_at_the_start_are_counted(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        [{"Question ": f"{n}+1?", "answer": "3", "context": "x"} for n in range(20)],
    )
    file.write_bytes(b"// made by hand\n\xff\n" + file.read_bytes())
    config, said = made(tmp_path, file)
    assert "20 usable questions, 2 unusable" in said
    assert "  solution: column 'answer'\n  not used: 'context'\n" in said
    assert len(read_source(config.data).rows) == 20


def test_a_config_is_not_overwritten(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"question": "1+1?", "solution": "2"}])
    (tmp_path / "rlt.toml").write_text("seeds = [7]")
    with pytest.raises(UserError, match="exists; remove it"):
        made(tmp_path, file)
    assert (tmp_path / "rlt.toml").read_text() == "seeds = [7]"


def test_the_gpu_is_the_first_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_driver.install(tmp_path, 2, monkeypatch)
    assert gpu_gib() == 10.0
    for visible, memory in (("1", 11.0), ("GPU-0001,0", 11.0), ("", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert gpu_gib() == memory
