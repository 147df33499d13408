"""`rlt score`, also `rlt reward score`: score any explanations with any two models."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.options import DEFAULT_STORE, JsonOption, StoreOption, check_output, existing_store
from flows.cli.progress import progress_bar, stop_requests
from flows.cli.terminal import Console, line, new_table, print, print_json, table_console
from rlt_core.config import REWARD_PRESETS, DType, KLEstimator, StageResources
from rlt_core.config.reward import off_policy_note
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format, shipped

if TYPE_CHECKING:
    import pyarrow as pa

    from rlt_core.explanations import ModelPair

MODEL = "a folder, a name in the store, hub:org/name@commit or package:name"
OFF_POLICY = "they come from a file"
ROW = "question, solution, explanation, optionally closed"
SUFFIXES = (".parquet", ".csv", ".jsonl")
SHOWN_ROWS = 3
"""Best rows that are shown, and as many worst ones."""
SHOWN_CHARACTERS = 200
"""Characters of an explanation that are shown at most, on one line."""
MEANS = ("reward", "r_ss", "r_kl", "think_mean", "rank_surprisal")

InputOption = Annotated[
    Path, typer.Option("--input", "-i", help=f"JSONL, JSON, CSV or Parquet file: {ROW}.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Parquet, CSV or JSONL file: texts and scores.")
]
FieldOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=COLUMN", help="Column of a field, e.g. question=problem."),
]
KLOption = Annotated[
    KLEstimator | None,
    typer.Option(
        help="KL estimator; by default full, or k3 with --alignment text. k1 is valid for the "
        "teacher's own samples only."
    ),
]
AlignmentOption = Annotated[
    Literal["ids", "text"], typer.Option(help="text: the models may have different tokenizers.")
]


def score(
    teacher: Annotated[str, typer.Option(metavar="MODEL", help=f"Teacher: {MODEL}.")],
    student: Annotated[str, typer.Option(metavar="MODEL", help=f"Student: {MODEL}.")],
    input_: InputOption,
    output: OutputOption,
    field: FieldOption = None,
    prompt_format: Annotated[
        str, typer.Option(help=f"Format file (JSON), or one of {', '.join(shipped())}.")
    ] = "rlt",
    allow_other_format: Annotated[
        bool, typer.Option(help="Permit a model that was trained with another format.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help=f"Reward to start from: {', '.join(REWARD_PRESETS)}.")
    ] = "paper",
    alpha: Annotated[float | None, typer.Option(help="Weight of the worst token.")] = None,
    kl_weight: Annotated[float | None, typer.Option("--lambda", help="Weight of r_KL.")] = None,
    kl: KLOption = None,
    alignment: AlignmentOption = "ids",
    temperature: Annotated[
        float | None, typer.Option(help="Divisor of both models' logits.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Number format of both models.")] = "float32",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Device of both models.")
    ] = "auto",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Score explanations: reward, parts, baselines, diagnostics and log-probs of every row.

    After Ctrl-C the same command continues where it stopped.
    """
    if preset not in REWARD_PRESETS:
        raise UserError(f"--preset {preset}: choose from {', '.join(REWARD_PRESETS)}")
    check_output(output, SUFFIXES, input_)
    columns = _columns(field or [])
    format = load_format(prompt_format)
    kl = kl or ("k3" if alignment == "text" else "full")
    note = off_policy_note(kl, OFF_POLICY)
    print(note, file=sys.stderr)
    from rlt_core.explanations import ModelPair, named_model
    from rlt_core.reward.replay import changed

    given = {"alpha": alpha, "kl_weight": kl_weight, "temperature": temperature}
    changes = {name: value for name, value in given.items() if value is not None}
    spec = changed(REWARD_PRESETS[preset], changes | {"kl": kl, "alignment": alignment})
    with TemporaryDirectory() as folder:
        (teacher_folder, teacher_name), (student_folder, student_name) = (
            named_model(option, name, lambda: existing_store(store), Path(folder))
            for option, name in (("--teacher", teacher), ("--student", student))
        )
        models = ModelPair(
            teacher_folder, student_folder, format, spec, dtype, StageResources(device=device),
            allow_other_format, {"teacher": teacher_name, "student": student_name},
        )  # fmt: skip
        table = _score(models, input_, output, columns, quiet=as_json)
    _show(table, output, {"kl": kl, "kl_note": note}, as_json)


def _score(
    models: ModelPair, input_: Path, output: Path, columns: dict[str, str], quiet: bool
) -> pa.Table:
    from rlt_core.models import use_threads
    from tasks.score_file import score_file

    use_threads(len(os.sched_getaffinity(0)))
    stop = threading.Event()
    with progress_bar("score", quiet) as report, stop_requests(lambda _: stop.set()):
        try:
            progress = Progress(report, stop.is_set)
            return score_file(models, input_, output, progress, columns, _save)
        except Stopped:
            print("stopped; the same command continues from here", file=sys.stderr)
            raise typer.Exit(130) from None


def _columns(given: list[str]) -> dict[str, str]:
    """Return the column that each --field names. Raises UserError."""
    from rlt_core.data.imports import EXPLANATION_FIELDS

    columns = {}
    for one in given:
        name, equals, column = one.partition("=")
        if not equals or not column or name not in EXPLANATION_FIELDS:
            raise UserError(
                f"--field {one!r}: write FIELD=COLUMN with one of {', '.join(EXPLANATION_FIELDS)}"
            )
        columns[name] = column
    return columns


def _save(table: pa.Table, output: Path) -> None:
    import duckdb

    from flows.cli.sql_output import write
    from tasks.score_file import save_parquet

    if output.suffix == ".parquet":
        save_parquet(table, output)
    else:
        write(duckdb.from_arrow(table), output.suffix[1:], output)


def _show(table: pa.Table, output: Path, estimator: dict[str, str], as_json: bool) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    numbered = table.append_column("row", pa.array(range(1, table.num_rows + 1)))
    scored = numbered.filter(pc.equal(table["status"], "scored"))
    means = {f"mean_{name}": pc.mean(scored[name]).as_py() for name in MEANS}
    counts = {"rows": table.num_rows, "scored": scored.num_rows}
    counts["too_long"] = table.num_rows - scored.num_rows
    ordered = scored.sort_by([("reward", "descending")]).select(["row", "reward", "explanation"])
    rows = ordered.to_pylist()
    ends = {"best": rows[:SHOWN_ROWS], "worst": rows[SHOWN_ROWS:][-SHOWN_ROWS:]}
    if as_json:
        found = {"output": str(output), **estimator, **counts, **means, **ends}
        print_json(found)
        return
    console, text = Console(soft_wrap=True), "best and worst explanations"
    console.print("  ".join(f"{name} {value}" for name, value in counts.items()))
    shown = (f"{name} {value:.4g}" for name, value in means.items() if value is not None)
    console.print("  ".join(shown))
    numbers, console = ("row", "reward"), table_console()
    ranked = new_table(*numbers, text, right=numbers, whole=numbers)
    room = min(SHOWN_CHARACTERS, max(console.width - 20, 10))
    for row in (*ends["best"], *ends["worst"]):
        shortened = line(row["explanation"])[:room]
        ranked.add_row(str(row["row"]), f"{row['reward']:.4f}", shortened)
    console.print(ranked)
    print(f"written: {output}")
