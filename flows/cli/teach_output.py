"""What `rlt teach` writes and shows."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.text import Text

from flows.cli.tables import line, new_table
from flows.cli.terminal import Console
from rlt_core.environment import disk_space
from rlt_core.export.hub import joined, schema_of
from rlt_core.rows import CHECKED, read_rows
from rlt_core.store import Manifest, Store

SHOWN = 3
"""Questions whose best and worst explanations are printed."""
SHOWN_CHARACTERS = 600
Row = dict[str, Any]


def _rows(store: Store, kept: Manifest) -> Iterator[Row]:
    """Yield the rows of the chat data: messages, texts, reward and parts, provenance."""
    scores = store.manifest("scores", kept.inputs["scores"].key)
    for row in joined(store, kept, scores):
        del row["split"]
        yield row | {"run": kept.ref.key}


def write(store: Store, kept: Manifest, output: Path) -> int:
    """Write the chat data completely or not at all; return the number of rows."""
    part, count = output.with_name(output.name + ".part"), 0
    rows = _rows(store, kept)
    with disk_space(output.parent):
        if output.suffix == ".jsonl":
            with part.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
        else:
            schema = schema_of(True).append(pa.field("run", pa.string()))
            with pq.ParquetWriter(part, schema, **CHECKED) as writer:
                while batch := list(islice(rows, 1000)):
                    writer.write_table(pa.Table.from_pylist(batch, schema))
                    count += len(batch)
        part.replace(output)
    return count


def show_table(console: Console, store: Store, made: dict[str, Manifest]) -> None:
    """Print what was kept, what was not and why, rewards, tokens and cost."""
    selection = made["trace-selection"]
    m, written = selection.metrics, made.get("trace-generation") or made["endpoint-generation"]
    data = made["dataset-prep"]
    unread = Counter(
        row["reason"] for row in read_rows(store.intact(data, ".parquet"), "dropped", ["reason"])
    )
    table = new_table("", "", "")
    table.show_header = False

    def add(name: str, value: str, more: str = "") -> None:
        table.add_row(name, value, more)

    asked = int(m["questions"] + m["questions_without"])
    add("questions", str(asked), _counts(unread, "left out: "))
    without = f"{m['questions_without']:.0f} without a usable explanation"
    add("  with a usable explanation", f"{m['questions']:.0f}", without)
    reasons: Counter[str] = Counter({
        name: int(m[name]) for name in ("cut", "too_long", "wrong", "ungradable") if name in m
    })  # fmt: skip
    if failed := int(written.metrics.get("dropped", 0)):
        reasons["without an answer"] = failed
    add("explanations", f"{m['traces']:.0f}", _counts(reasons, "dropped: "))
    add("  kept", f"{m['kept']:.0f}")
    interval = f" [{m['gain_low']:+.3f}, {m['gain_high']:+.3f}]" if "gain_low" in m else ""
    against = f"{m['gain']:+.3f}{interval} above the mean of a question's, {m['group_reward']:.3f}"
    add("reward of the best", f"{m['mean_reward']:.3f}", against)
    if "mean_r_kl" not in made["trace-scoring"].metrics:
        add("", "", "r_SS alone: an endpoint gives no log-probs, so r_KL is unknown")
    tokens = written.metrics.get("completion_tokens", m["trace_tokens"])
    add("tokens written", f"{tokens:.0f}", _cost(list(made.values()), written))
    console.print(table)


def _counts(counts: Counter[str], before: str) -> str:
    return before + ", ".join(f"{name} {n}" for name, n in counts.most_common()) if counts else ""


def _cost(made: Sequence[Manifest], written: Manifest) -> str:
    """Return the price and the time of what was computed."""
    parts = []
    if (cost := written.metrics.get("cost")) is not None:
        parts.append(f"cost {cost:.4g} by the endpoint's prices")
    if gpu := sum(one.gpu_seconds for one in made):
        parts.append(f"{gpu / 3600:.2f} GPU-hours")
    parts.append(f"{sum(one.seconds for one in made) / 60:.1f} minutes of computing")
    return ", ".join(parts)


def show_examples(console: Console, store: Store, made: dict[str, Manifest]) -> None:
    """Print the best explanation of some questions beside the worst."""
    scored, selection = made["trace-scoring"], made["trace-selection"]
    scores = read_rows(store.intact(scored, ".parquet"), "scores",
                       ["trace_id", "question_id", "reward", "rank"])  # fmt: skip
    columns = ["question_id", "question"]
    folder = store.intact(made["dataset-prep"], ".parquet")
    texts = {row["question_id"]: row["question"] for row in read_rows(folder, "questions", columns)}
    kept = read_rows(store.intact(selection, ".parquet"), "traces", ["question_id", "trace_id"])
    first = list(dict.fromkeys(row["question_id"] for row in kept))[:SHOWN]
    chosen = {row["trace_id"] for row in kept}
    ranked = {q: [row for row in scores if row["question_id"] == q and row["rank"]] for q in first}
    pairs = {
        q: (min((row for row in group if row["trace_id"] in chosen), key=lambda row: row["rank"]),
            max(group, key=lambda row: row["rank"]))
        for q, group in ranked.items()
    }  # fmt: skip
    wanted = {row["trace_id"] for pair in pairs.values() for row in pair}
    traces = store.manifest("traces", selection.inputs["traces"].key)
    assert traces
    written = read_rows(store.intact(traces, ".parquet"), "traces", ["trace_id", "text"])
    explanation = {row["trace_id"]: row["text"] for row in written if row["trace_id"] in wanted}
    for q, pair in pairs.items():
        table = new_table(*(
            f"{name}, reward {row['reward']:.3f}"
            for name, row in zip(("best", "worst"), pair, strict=True)
        ))  # fmt: skip
        table.pad_edge = True
        table.add_row(*(
            Text(line(explanation[row["trace_id"]])[:SHOWN_CHARACTERS]) for row in pair
        ))  # fmt: skip
        console.print()
        console.print(Text(line(texts[q]), "bold"), soft_wrap=True)
        Console(file=sys.stdout, width=min(console.width, 160)).print(table)
