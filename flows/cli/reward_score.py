"""`rlt reward score`: any explanations, any two local models."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.options import JsonOption, check_parquet
from flows.cli.progress import Display
from rlt_core.config import REWARD_PRESETS, DType, KLEstimator, RewardSpec, StageResources
from rlt_core.config.reward import off_policy_note
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format, shipped

if TYPE_CHECKING:
    import pyarrow as pa

OFF_POLICY = "they come from a file"
MEANS = ("reward", "r_ss", "r_kl", "think_mean", "rank_surprisal")


InputOption = Annotated[
    Path,
    typer.Option(
        "--input",
        "-i",
        help="JSONL, JSON, CSV or Parquet with question, solution, explanation and, if some were "
        "not, closed.",
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
        str, typer.Option(help=f"A format file (JSON), or one of {', '.join(shipped())}.")
    ] = "rlt",
    allow_other_format: Annotated[
        bool, typer.Option(help="Score with a model that was trained with another format.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help=f"Reward to start from: {', '.join(REWARD_PRESETS)}.")
    ] = "paper",
    alpha: Annotated[float | None, typer.Option(help="Weight of the worst token.")] = None,
    kl_weight: Annotated[float | None, typer.Option("--lambda", help="Weight of r_KL.")] = None,
    kl: Annotated[
        KLEstimator, typer.Option(help="KL at a token; k1 suits the teacher's own samples alone.")
    ] = "full",
    temperature: Annotated[
        float | None, typer.Option(help="Logits of both models are divided by it.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Number format of both models.")] = "float32",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the models compute.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score explanations: reward, parts, baselines, diagnostics and log-probs of every row.

    After Ctrl-C the same command continues where it stopped.
    """
    given = {"alpha": alpha, "kl_weight": kl_weight, "kl": kl, "temperature": temperature}
    spec = _spec(preset, {name: value for name, value in given.items() if value is not None})
    check_parquet(output)
    format = load_format(prompt_format)
    note = off_policy_note(kl, OFF_POLICY)
    print(note, file=sys.stderr)
    files = (teacher, student, input_, output)
    resources = StageResources(device=device)
    with _progress(quiet=as_json) as progress:
        from rlt_core.models import use_threads
        from tasks.score_file import Scoring, score_file

        use_threads(len(os.sched_getaffinity(0)))
        try:
            scoring = Scoring(*files, format, spec, dtype, resources, allow_other_format)
            table = score_file(scoring, progress)
        except Stopped:
            print("stopped; the same command continues from here", file=sys.stderr)
            raise typer.Exit(130) from None
    _show(table, output, {"kl": kl, "kl_note": note}, as_json)


def _spec(preset: str, changes: dict[str, Any]) -> RewardSpec:
    if preset not in REWARD_PRESETS:
        raise UserError(f"--preset {preset}: neither of {', '.join(REWARD_PRESETS)}")
    try:
        return RewardSpec.model_validate(REWARD_PRESETS[preset].model_dump() | changes)
    except ValueError as error:
        raise UserError(f"reward: {error}") from None


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Progress on the terminal; Ctrl-C and SIGTERM ask the work to end at the next pass."""
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda signum, frame: asked.append(signum))
    console = Console(stderr=True)
    display = Display(total=1, hits=0, console=console)
    try:
        if quiet:
            yield Progress(should_stop=lambda: bool(asked))
            return
        with display:
            display.started("score")
            yield Progress(
                report=lambda done, total, metrics: display.progress("score", done, total, metrics),
                should_stop=lambda: bool(asked),
            )
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
        print(json.dumps({"output": str(output), **estimator, **counts, **means}, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print("  ".join(f"{name} {value}" for name, value in counts.items()))
    shown = (f"{name} {value:.4g}" for name, value in means.items() if value is not None)
    console.print("  ".join(shown))
    console.print(f"written: {escape(str(output))}")
