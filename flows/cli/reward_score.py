"""`rlt reward score`: score any explanations with any two local models."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.options import JsonOption, check_parquet
from flows.cli.progress import progress_bar
from flows.cli.terminal import Console, print, print_data
from rlt_core.config import REWARD_PRESETS, DType, KLEstimator, StageResources
from rlt_core.config.reward import off_policy_note
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format, shipped

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.score_file import Scoring

OFF_POLICY = "they come from a file"
MEANS = ("reward", "r_ss", "r_kl", "think_mean", "rank_surprisal")


InputOption = Annotated[
    Path,
    typer.Option(
        "--input",
        "-i",
        help="JSONL, JSON, CSV or Parquet file: question, solution, explanation, optionally "
        "closed.",
    ),
]


def score(
    teacher: Annotated[Path, typer.Option(help="Model folder of the teacher.")],
    student: Annotated[Path, typer.Option(help="Model folder of the student.")],
    input_: InputOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Parquet file for the scores, one row per input row."),
    ],
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
    kl: Annotated[
        KLEstimator,
        typer.Option(help="KL estimator; k1 is valid for the teacher's own samples only."),
    ] = "full",
    temperature: Annotated[
        float | None, typer.Option(help="Divisor of both models' logits.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Number format of both models.")] = "float32",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Device of both models.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score explanations: reward, parts, baselines, diagnostics and log-probs of every row.

    After Ctrl-C the same command continues where it stopped.
    """
    if preset not in REWARD_PRESETS:
        raise UserError(f"--preset {preset}: choose from {', '.join(REWARD_PRESETS)}")
    check_parquet(output)
    format = load_format(prompt_format)
    note = off_policy_note(kl, OFF_POLICY)
    print(note, file=sys.stderr)
    from rlt_core.reward.replay import changed
    from tasks.score_file import Scoring

    given = {"alpha": alpha, "kl_weight": kl_weight, "kl": kl, "temperature": temperature}
    changes = {name: value for name, value in given.items() if value is not None}
    spec = changed(REWARD_PRESETS[preset], changes)
    files, resources = (teacher, student, input_, output), StageResources(device=device)
    table = _score(
        Scoring(*files, format, spec, dtype, resources, allow_other_format), quiet=as_json
    )
    _show(table, output, {"kl": kl, "kl_note": note}, as_json)


def _score(scoring: Scoring, quiet: bool) -> pa.Table:
    from rlt_core.models import use_threads
    from tasks.score_file import score_file

    use_threads(len(os.sched_getaffinity(0)))
    with progress_bar("score", quiet) as report, _stop_requests() as should_stop:
        try:
            return score_file(scoring, Progress(report, should_stop))
        except Stopped:
            print("stopped; the same command continues from here", file=sys.stderr)
            raise typer.Exit(130) from None


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C or SIGTERM has requested a stop."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda signum, frame: received.append(signum))
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(table: pa.Table, output: Path, estimator: dict[str, str], as_json: bool) -> None:
    import pyarrow.compute as pc

    scored = table.filter(pc.equal(table["status"], "scored"))
    means = {f"mean_{name}": pc.mean(scored[name]).as_py() for name in MEANS}
    counts = {"rows": table.num_rows, "scored": scored.num_rows}
    counts["too_long"] = table.num_rows - scored.num_rows
    if as_json:
        print_data(json.dumps({"output": str(output), **estimator, **counts, **means}, indent=1))
        return
    console = Console(soft_wrap=True)
    console.print("  ".join(f"{name} {value}" for name, value in counts.items()))
    shown = (f"{name} {value:.4g}" for name, value in means.items() if value is not None)
    console.print("  ".join(shown))
    console.print(f"written: {output}")
