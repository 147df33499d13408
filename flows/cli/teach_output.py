"""What `rlt teach` writes and shows."""

import sys
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
from rich.text import Text

from flows.cli.sql_output import write
from flows.cli.terminal import Console, line, new_table
from rlt_core.export.hub import joined, schema_of
from rlt_core.rows import read_rows
from rlt_core.sql.views import connect
from rlt_core.store import Manifest, Store

SHOWN = 3
"""Questions whose best and worst explanations are printed."""
SHOWN_CHARACTERS = 600


def write_chat(store: Store, kept: Manifest, output: Path) -> int:
    """Write the chat data (messages, texts, reward and parts, provenance); return the number of
    rows."""
    scores = store.manifest("scores", kept.inputs["scores"].key)
    rows = [row | {"run": kept.ref.key} for row in joined(store, kept, scores)]
    schema = schema_of(True).append(pa.field("run", pa.string()))
    write(duckdb.from_arrow(pa.Table.from_pylist(rows, schema)), output.suffix[1:], output)
    return len(rows)


def show_table(console: Console, store: Store, made: dict[str, Manifest]) -> None:
    """Print what was kept, what was not and why, rewards, tokens and cost."""
    m = made["trace-selection"].metrics
    written = made.get("trace-generation") or made["endpoint-generation"]
    data = store.intact(made["dataset-prep"], ".parquet")
    unread = Counter(row["reason"] for row in read_rows(data, "dropped", ["reason"]))
    names = ("cut", "too_long", "wrong", "ungradable")
    reasons = Counter({name: int(m[name]) for name in names if name in m})
    reasons["without an answer"] = int(written.metrics.get("dropped", 0))
    interval = f" [{m['gain_low']:+.3f}, {m['gain_high']:+.3f}]" if "gain_low" in m else ""
    tokens = written.metrics.get("completion_tokens", m["trace_tokens"])
    seconds, gpu = (
        sum(getattr(one, n) for one in made.values()) for n in ("seconds", "gpu_seconds")
    )
    cost = written.metrics.get("cost")
    computed = f"{seconds / 60:.1f} minutes, {gpu / 3600:.2f} GPU-hours of computing"
    rows = [
        ("questions", m["questions"] + m["questions_without"], f"left out: {_counts(unread)}"),
        ("  with a usable explanation", m["questions"], ""),
        ("explanations", m["traces"], f"dropped: {_counts(reasons)}"),
        ("  kept", m["kept"], ""),
        ("tokens written", tokens, computed + ("" if cost is None else f", cost {cost:.4g}")),
    ]
    table = new_table("", "", "", show_header=False)
    for name, number, more in rows:
        table.add_row(name, f"{number:.0f}", more)
    above = f"{m['gain']:+.3f}{interval} above the mean of a question's, {m['group_reward']:.3f}"
    table.add_row("reward of the best", f"{m['mean_reward']:.3f}", above)
    if "mean_r_kl" not in made["trace-scoring"].metrics:
        table.add_row("", "", "r_SS alone: an endpoint gives no log-probs, so r_KL is unknown")
    console.print(table)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common() if n) or "none"


EXAMPLES = """
with kept as (select trace_id from traces where run = $kept),
ranked as (
    select question_id, reward, rank, text, trace_id in (from kept) as is_kept
    from (from scores where run = $scores) join (from traces where run = $traces)
    using (trace_id, question_id) where rank is not null
)
select any_value(question) as question,
    min_by(text, rank) filter (is_kept) as best, min_by(reward, rank) filter (is_kept) as highest,
    max_by(text, rank) as worst, max_by(reward, rank) as lowest
from ranked join (from questions where run = $data) using (question_id)
group by question_id having bool_or(is_kept) order by question_id limit $shown
"""


def show_examples(console: Console, store: Store, made: dict[str, Manifest]) -> None:
    """Print the best explanation of some questions beside the worst."""
    selection = made["trace-selection"]
    runs = {
        "kept": selection.ref.key, "traces": selection.inputs["traces"].key,
        "scores": made["trace-scoring"].ref.key, "data": made["dataset-prep"].ref.key,
    }  # fmt: skip
    with connect(store) as connection:
        found = connection.execute(EXAMPLES, runs | {"shown": SHOWN}).fetchall()
    for question, best, highest, worst, lowest in found:
        table = new_table(f"best, reward {highest:.3f}", f"worst, reward {lowest:.3f}")
        table.pad_edge = True
        table.add_row(*(Text(line(text)[:SHOWN_CHARACTERS]) for text in (best, worst)))
        console.print()
        console.print(Text(line(question), "bold"), soft_wrap=True)
        Console(file=sys.stdout, width=min(console.width, 160)).print(table)
