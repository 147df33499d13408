"""`rlt bench`: models compared by one protocol."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from flows.cli import teach
from flows.cli.options import DEFAULT_STORE, JsonOption, SetOption, StoreOption, open_store
from flows.cli.terminal import new_table, print, print_json, print_whole, table_console
from rlt_core.errors import UserError
from rlt_core.experiments.bench_teachers import NAME, pair
from rlt_core.rows import read_rows
from rlt_core.store import Manifest, Store

app = typer.Typer(no_args_is_help=True, help="Models compared by one protocol.")
TESTED = 200
"""Questions that test trained students; `data.test_source` or `data.n_test` says otherwise."""
COLUMNS = ("reward", "r_ss", "r_kl", "rank_surprisal", "think_tokens")
Row = dict[str, Any]


@app.command()
def teachers(
    questions: teach.Questions,
    teachers: Annotated[
        str, typer.Option(help="Models that explain, as `rlt teach --teacher` names one: A,B,C.")
    ],
    students: Annotated[str, typer.Option(help="Models to be taught: X,Y.")],
    train: Annotated[
        bool,
        typer.Option("--train", help="Train the students on the best traces as well, and test."),
    ] = False,
    samples: teach.SamplesOption = 4,
    budget_tokens: teach.BudgetTokens = None,
    budget_usd: teach.BudgetUSD = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Find the teacher for a student: reward, parts, length and cost of every pair.

    After Ctrl-C, or with a larger budget, the same command continues.
    """
    opened = open_store(store)
    explain, learn = (
        _sources(opened, option, text)
        for option, text in (("--teachers", teachers), ("--students", students))
    )
    if endpoints := [source for source in learn.values() if source.startswith(teach.ENDPOINT)]:
        raise UserError(f"--students {endpoints[0]}: the student's log-probs are needed: a model")
    changes = {
        **teach.of_data(questions, set_ or ()),
        **_bench(opened, explain, learn, samples, train),
        **teach.of_budget([*explain.values()], budget_tokens, budget_usd),
    }
    plan = teach.computed(NAME, changes, set_ or (), store, quiet=as_json)
    committed = plan.store.manifests_of(item.node.ref for item in plan.nodes)
    rows = list(_matrix(plan.store, list(committed.values()), explain, learn, train))
    if as_json:
        print_json(rows)
    else:
        _show(rows, train)


def _sources(store: Store, option: str, text: str) -> dict[str, str]:
    """Return the source of each model by its name. Raises UserError for two of one name."""
    found: dict[str, str] = {}
    for model in filter(None, (one.strip() for one in text.split(","))):
        name = teach.name_of(model)
        if name in found:
            raise UserError(f"{option}: two models are called {name}")
        found[name] = (
            model if model.startswith(teach.ENDPOINT) else teach.source_of(store, option, model)
        )
    if not found:
        raise UserError(f"{option}: name at least one model")
    return found


def _bench(
    store: Store, teachers: dict[str, str], students: dict[str, str], samples: int, train: bool
) -> teach.Changes:
    """Name the models."""
    models = {name: one for name, one in teachers.items() if not one.startswith(teach.ENDPOINT)}
    endpoints = [one for one in teachers.values() if one.startswith(teach.ENDPOINT)]
    if len(endpoints) > 1:
        raise UserError(f"--teachers: one endpoint at a time, not {' and '.join(endpoints)}")
    return {
        **(teach.of_endpoint(endpoints[0], samples) if endpoints else {}),
        "teacher_bench": {"teachers": models, "students": students, "train": train},
        "base_model": next(iter(students.values())),
        "trace_generation.n": samples,
        **teach.of_format(store, [*models.values(), *students.values()]),
        **({"data.n_test": TESTED} if train else {}),
    }


# ---------------------------------------------------------------- the matrix
def _matrix(
    store: Store,
    made: Sequence[Manifest],
    teachers: dict[str, str],
    students: Iterable[str],
    train: bool,
) -> Iterator[Row]:
    """Yield a row per teacher and student."""
    by_label = {one.label: one for one in made}
    for teacher, source in teachers.items():
        stage = "endpoint-generation" if source.startswith(teach.ENDPOINT) else "trace-generation"
        traces = by_label[f"{stage}[{teacher}]"]
        for student in students:
            variant = pair(teacher, student)
            scores = by_label[f"trace-scoring[{variant}]"]
            row: Row = {"teacher": teacher, "student": student, **_means(store, scores)}
            row["cost"] = traces.metrics.get("cost")
            row["seconds"] = traces.seconds + scores.seconds
            if train:
                row["before"] = _score(store, by_label[f"evaluation[{student}]"])
                row["after"] = _score(store, by_label[f"evaluation[{variant}]"])
            yield row


def _means(store: Store, scores: Manifest) -> Row:
    """Means over the scored traces; of the reward with a 95% interval over questions, None where
    there is only one."""
    import pandas as pd  # slow to import

    from rlt_core.evaluation.comparisons import cluster_bootstrap

    rows = read_rows(store.intact(scores, ".parquet"), "scores", ["question_id", *COLUMNS])
    table = pd.DataFrame(rows).dropna(subset="reward")
    table[[*COLUMNS]] = table[[*COLUMNS]].astype(float)
    found = {name: None if math.isnan(mean := table[name].mean()) else mean for name in COLUMNS}
    means = table.groupby("question_id")["reward"].mean().to_numpy()
    interval = cluster_bootstrap(means) if len(means) > 1 else None
    return found | {"low": interval and interval.low, "high": interval and interval.high}


def _score(store: Store, evaluation: Manifest) -> tuple[float, float, float]:
    """Percent right and its 95% interval."""
    rows = read_rows(store.intact(evaluation, ".parquet"), "eval_scores")
    first = next(row for row in rows if row["metric"].startswith("avg@"))
    return 100 * first["value"], 100 * first["low"], 100 * first["high"]


def _show(rows: Sequence[Row], train: bool) -> None:
    numbers = ["r_SS", "r_KL", "rank-surprisal", "tokens", "minutes", "cost"]
    trained = ["% before", "% after training"] if train else []
    headers = ["teacher", "student", "reward [95%]", *numbers, *trained]
    table = new_table(*headers, right=headers[2:], whole=headers)

    def shown(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for row in rows:
        table.add_row(
            row["teacher"], row["student"],
            f"{shown(row['reward'])} [{shown(row['low'])}, {shown(row['high'])}]",
            shown(row["r_ss"]), shown(row["r_kl"]), shown(row["rank_surprisal"]),
            shown(row["think_tokens"], 0), shown(row["seconds"] / 60, 1), shown(row["cost"], 4),
            *(f"{v:.1f} [{low:.1f}, {high:.1f}]"
              for v, low, high in ((row["before"], row["after"]) if train else ())),
        )  # fmt: skip
    print_whole(table_console(), table)
    if any(row["r_kl"] is None for row in rows):
        print("r_KL -: an endpoint gives no log-probs; the reward is r_SS alone, not comparable "
              "with the others'", file=sys.stderr)  # fmt: skip
