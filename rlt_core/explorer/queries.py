"""The rows that the explorer's pages show.

An index in DuckDB has one narrow row per scored trace, so that pages of filters are fast and memory
is bounded: it may spill to a private folder. Log-probs and texts stay in the store; a page reads
them from the row groups that hold its question.
"""

import hashlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from rlt_core.errors import UserError
from rlt_core.explain import IDS, Row
from rlt_core.reward.diagnostics import COMPRESSION_ALARM, COPIED_ALARM
from rlt_core.sql.schemas import SCORES, SQL_TYPES
from rlt_core.sql.views import dataset, sql_errors
from rlt_core.store import Manifest, Store

MEMORY = "400MB"
"""DuckDB's own limit; what exceeds it spills."""
PAGE_ROWS = 50
FRESH_S = 15.0
"""Seconds for which the list of artifacts is not read again."""
NARROW = [field.name for field in SCORES if not pa.types.is_list(field.type)]
RANGES = {
    "reward": "reward", "r_ss": "r_ss", "r_kl": "r_kl", "rank": "rank", "tokens": "think_tokens",
}  # fmt: skip
"""Columns that `min-NAME` and `max-NAME` limit."""
CONDITIONS = {
    "teacher": "teacher = ?",
    **{f"min-{name}": f"{column} >= ?" for name, column in RANGES.items()},
    **{f"max-{name}": f"{column} <= ?" for name, column in RANGES.items()},
}
"""Filters of one value."""
BADGES = {
    "correct": "correct", "wrong": "not correct", "unclosed": "not closed", "clipped": "clipped",
    "copies": f"copied > {COPIED_ALARM}", "repeats": f"compression > {COMPRESSION_ALARM}",
    "too long": "status = 'too_long'",
}  # fmt: skip
"""Diagnostics, and the condition of each."""
TYPICAL = "typical"
"""Order of questions by the best and the worst of their explanations of typical length alone."""
MARK_TYPICAL = """update listed set typical = found.typical from (
    select rowid as place, reward is not null
    and think_tokens between 0.8 * median(think_tokens) over same and 1.25 * median(think_tokens)
    over same and not list_has_any(badges, ['unclosed', 'clipped', 'repeats']) as typical
    from listed window same as (partition by judge, question_id)
) as found where listed.rowid = found.place"""
"""Mark the rows that can be compared with others of their question: one token or an endless text
has the worst reward, but shows nothing about explanations."""
ENDS = {
    "best": "max(reward)", "worst": "min(reward)",
    "first": "arg_max(run || '.' || trace_id, reward)",
    "last": "arg_min(run || '.' || trace_id, reward)",
}  # fmt: skip
"""A question's highest and lowest reward, and the names of the explanations that have them."""
QUESTION_SORTS = {
    TYPICAL: "case when typical then best - worst end", "spread": "best - worst",
    "best": "best", "worst": "-worst", "explanations": "explanations",
}  # fmt: skip
TRACE_SORTS = {
    "highest": "reward", "lowest": "-reward", "longest": "think_tokens",
    "shortest": "-think_tokens", "r_ss": "r_ss", "r_kl": "r_kl",
    "copied": "copied", "compression": "compression", "utility": "utility",
}  # fmt: skip
"""Orders, each by an expression, the largest first; nulls come last."""

log = logging.getLogger(__name__)

Filters = Mapping[str, Any]
"""Names of the URL's parameters -> texts; `is` -> several."""


class Library:
    """The scored traces of a store; several threads may use it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manifests: dict[str, Manifest] = {}
        """Every artifact by key."""
        self._spill = tempfile.TemporaryDirectory(prefix="rlt-traces-")
        self._lock, self._read_at, self._found = threading.RLock(), -FRESH_S, ""
        self._db = duckdb.connect(
            config={"memory_limit": MEMORY, "temp_directory": self._spill.name}
        )
        columns = ", ".join(f"{name} {SQL_TYPES[SCORES.field(name).type]}" for name in NARROW)
        self._db.execute(
            f"""create table listed (run varchar, file varchar, {columns}, judge varchar,
            traces_run varchar, badges varchar[], typical boolean);
            create table placed (run varchar, file varchar, trace_id varchar, question_id varchar);
            create table asked (run varchar, question_id varchar, question varchar)"""
        )
        self.refresh()
        if not self.ask("select 1 from listed limit 1"):
            raise UserError(f"no scored traces in {store}; `rlt run trace-scoring` makes them")

    def ask(self, sql: str, *parameters: Any) -> list[Row]:
        """Run SQL on the index."""
        with self._lock, sql_errors(sql):
            return list(self._db.sql(sql, params=list(parameters)).to_arrow_table().to_pylist())

    # ------------------------------------------------------------ index
    def refresh(self) -> None:
        """Add artifacts that were committed since, drop those that were removed."""
        with self._lock:
            if time.monotonic() - self._read_at < FRESH_S:
                return
            found = {one.ref.key: one for one in self.store.manifests()}
            for table in ("listed", "placed", "asked"):
                for key in self.manifests.keys() - found.keys():
                    self._db.execute(f"delete from {table} where run = ?", [key])
            for key in found.keys() - self.manifests.keys():
                try:
                    self._index(found[key])
                except UserError as error:  # the others can be shown
                    log.warning("%s", error)
            if found.keys() != self.manifests.keys():
                self._db.execute(MARK_TYPICAL)
            self.manifests = found
            self._read_at = time.monotonic()
            self._found = ""
            self.results.cache_clear()
            self.name_of.cache_clear()

    def _index(self, one: Manifest) -> None:
        key = one.ref.key
        if one.ref.kind == "scores" and "scores" in one.tables:
            judge = {name: one.config.get(name) for name in ("reward", "scoring")}
            digest = hashlib.sha256(json.dumps(judge, sort_keys=True).encode()).hexdigest()[:8]
            self._insert(
                one, "scores", NARROW,
                f"""insert into listed
                select '{key}', __filename, {", ".join(NARROW)},
                left(coalesce(student, ''), 8) || '{digest}', ?,
                {_badges(BADGES)}, false from incoming""",
                one.inputs["traces"].key if "traces" in one.inputs else None,
            )  # fmt: skip
        if "traces" in one.tables:
            insert = f"insert into placed select '{key}', __filename, trace_id, question_id"
            self._insert(one, "traces", ["trace_id", "question_id"], f"{insert} from incoming")
        if "questions" in one.tables:
            insert = f"insert into asked select '{key}', question_id, question from incoming"
            self._insert(one, "questions", ["question_id", "question"], insert)

    def _insert(
        self, one: Manifest, table: str, columns: list[str], sql: str, *parameters: Any
    ) -> None:
        scanner = dataset(self.store, table, [one]).scanner(columns=[*columns, "__filename"])
        self._db.register("incoming", scanner.to_reader())
        with sql_errors(sql):
            self._db.execute(sql, list(parameters))
        self._db.unregister("incoming")

    # ------------------------------------------------------------ rows by file
    def read(self, table: str, run: str, column: str, value: str) -> list[Row]:
        """Return an artifact's rows of a table in which a column has this value."""
        if not (one := self.manifests.get(run)) or table not in one.tables:
            return []
        where = ds.field(column) == value
        if index := {"scores": "listed", "traces": "placed"}.get(table):
            sql = f"select distinct file from {index} where run = ? and {column} = ?"
            files = {row["file"] for row in self.ask(sql, run, value)}
            root = self.store.data_path(one)
            kept = [each for each in one.files if f"{root}/{each.path}" in files]
            one = one.model_copy(update={"files": kept})
        source = dataset(self.store, table, [one])
        source.scanner()  # compares the files with the manifest
        try:
            groups = [g for each in source.get_fragments() for g in each.split_by_row_group()]
            with_rows = [group for group in groups if group.count_rows(filter=where)]
            tables = [group.to_table(source.schema, filter=where) for group in with_rows]
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{table} of {one.label} ({run}) cannot be read: {error}; "
                "`rlt artifacts verify` lists what is damaged"
            ) from None
        return [row for each in tables for row in each.to_pylist()]

    def find(self, table: str, run: str, name: str) -> Row | None:
        """Return the row with this id of an artifact, or None."""
        rows = self.read(table, run, IDS[table], name)
        return rows[0] if rows else None

    # ------------------------------------------------------------ filters
    def runs(self) -> list[Manifest]:
        """The artifacts with scores, the newest first."""
        scored = [one for one in self.manifests.values() if one.ref.kind == "scores"]
        return sorted(scored, key=lambda one: one.finished_at, reverse=True)

    def latest(self) -> list[str]:
        """Keys of the latest scores of each profile, node and seed."""
        found = {(one.profile, one.label, one.seed): one.ref.key for one in self.runs()[::-1]}
        return list(found.values())

    @lru_cache(maxsize=4096)  # noqa: B019
    def name_of(self, key: str) -> str:
        """Return an artifact's label, with what tells it from others of the label; else the key."""
        if not (one := self.manifests.get(key)):
            return key
        others = [each for each in self.manifests.values() if each.label == one.label]
        same = [each for each in others if each.seed == one.seed]
        name = one.label if len(same) == len(others) else f"{one.label} seed {one.seed}"
        if {each.profile for each in same} != {one.profile}:
            name += f" of {one.profile}"
        return f"{name} ({key[:6]})" if [e.profile for e in same].count(one.profile) > 1 else name

    def teachers(self) -> dict[str, str]:
        """Names of the teachers of all traces, by key."""
        rows = self.ask("select distinct teacher from listed where teacher is not null")
        return {row["teacher"]: self.name_of(row["teacher"]) for row in rows}

    def _where(self, filters: Filters) -> tuple[str, list[Any]]:
        """Return a condition on `listed` and its parameters. Raises UserError for no number."""
        runs: list[Any] = [filters["run"]] if filters.get("run") else self.latest()
        terms: list[str] = ["list_contains(?, run)"]
        given: list[Any] = [runs]
        for name, condition in CONDITIONS.items():
            if text := filters.get(name):
                terms.append(condition)
                given.append(text if name == "teacher" else number(name, text))
        for badge in filters.get("is") or ():
            terms.append("list_contains(badges, ?)")
            given.append(badge)
        if text := filters.get("q", "").strip().lower():
            self._search(text)
            terms.append(
                """(lower(trace_id) = ? or starts_with(lower(question_id), ?)
                or question_id in (select question_id from asked where contains(lower(question), ?))
                or (traces_run, trace_id) in (from found))"""
            )
            given += [text] * 3
        return " and ".join(terms), given

    def _search(self, text: str) -> None:
        """Fill the table `found` with the run and id of each trace whose text contains this one."""
        if text == self._found:
            return
        traces = [one for one in self.manifests.values() if "traces" in one.tables]
        self._db.register("texts", dataset(self.store, "traces", traces))
        sql = """create or replace table found as
            select run, trace_id from texts where contains(lower(text), ?)"""
        with sql_errors(sql):
            self._db.execute(sql, [text])
        self._db.unregister("texts")
        self._found = text

    # ------------------------------------------------------------ pages
    def questions(self, filters: Filters, sort: str, skip: int = 0) -> Row:
        """Questions with a trace that the filters leave, and the range of their rewards."""
        is_typical = "count(*) filter (typical) > 1" if sort == TYPICAL else "false"
        ends = ", ".join(
            f"case when {is_typical} then {end} filter (typical) else {end} end as {name}"
            for name, end in ENDS.items()
        )
        sql = f"""select judge, question_id, question_id as id, count(*) as explanations,
            {is_typical} as typical, {ends}
            from kept group by judge, question_id having count(reward) > 0"""
        return self._page(sql, filters, QUESTION_SORTS[sort], skip)

    def first_questions(self, count: int) -> list[str]:
        """Return the ids of the first questions."""
        rows = self.questions({}, TYPICAL)["rows"]
        return list(dict.fromkeys(row["question_id"] for row in rows))[:count]

    def traces(self, filters: Filters, sort: str, skip: int = 0) -> Row:
        """Traces that the filters leave."""
        return self._page(
            "select *, run || trace_id as id from kept", filters, TRACE_SORTS[sort], skip
        )

    def _page(self, sql: str, filters: Filters, order: str, skip: int) -> Row:
        """The page of a query of `kept`, the rows that the filters leave: `rows`, their `total` on
        all pages, and `after`, the rows before the next page (None: this is the last)."""
        with self._lock:  # a search of another request would replace `found`
            where, given = self._where(filters)
            kept = f"with kept as (from listed where {where})"
            rows = self.ask(
                f"""{kept} select page.*, (select any_value(question) from asked
                  where asked.question_id = page.question_id) as question
                from (select *, {order} as place from ({sql})
                      order by place desc nulls last, id limit {PAGE_ROWS} offset {skip}) as page
                order by place desc nulls last, id""",
                *given,
            )  # fmt: skip
            total = self.ask(f"{kept} select count(*) as rows from ({sql})", *given)[0]["rows"]
        after = skip + PAGE_ROWS
        return {"rows": rows, "total": total, "after": after if after < total else None}

    def of_question(self, name: str, judge: str | None, run: str | None) -> list[Row]:
        """Narrow rows of a question's traces, the best first: those that one student scored with
        one reward, `judge`, by default the one with most. `others`: the other judges, each with the
        key of scores by it. Raises UserError, naming the nearest."""
        runs = [run] if run else self.latest()
        sql = "from listed where question_id = ? and list_contains(?, run)"
        rows = self.ask(f"{sql} order by reward desc nulls last, run, sample", name, runs)
        if not rows:
            close = self.ask(
                "from (select distinct question_id from listed) "
                "order by levenshtein(question_id, ?), question_id limit 3", name,
            )  # fmt: skip
            hint = ", ".join(row["question_id"] for row in close)
            raise UserError(f"no scored trace of question {name} in {self.store}; nearest: {hint}")
        judges = [row["judge"] for row in rows]
        chosen = judge if judge in judges else max(judges, key=judges.count)
        others = {row["judge"]: row["run"] for row in rows if row["judge"] != chosen}
        return [row | {"others": others} for row in rows if row["judge"] == chosen]

    def unscored(self, question: str) -> list[Row]:
        """Return run and id of traces of a question that nothing has scored."""
        return self.ask(
            f"""select run, trace_id from placed where question_id = ?
            and run not in (select traces_run from listed where traces_run is not null)
            order by all limit {PAGE_ROWS}""", question,
        )  # fmt: skip

    # ------------------------------------------------------------ students
    def learned(self, student: str) -> Row | None:
        """Return what a student learned from, or that which RL continued: `traces`, the key of the
        artifact that has them; `scores`, of those that rank or show them; the `rank` that it chose
        in an `order`, or whether it took the best that `fits`; their `count`, and those `too_long`
        for its rows. None: other texts."""
        one, seen = self.manifests.get(student), set[str]()  # a damaged store may have a circle
        while one and one.stage != "student-sft" and one.ref.key not in seen:
            seen.add(one.ref.key)
            one = self.manifests.get(one.inputs["model"].key) if "model" in one.inputs else None
        if one is None or "traces" not in one.inputs:
            return None
        config, traces = one.config, one.inputs["traces"].key
        while (source := self.manifests.get(traces)) and source.stage == "trace-selection":
            if traces in seen or "traces" not in source.inputs:
                return None
            seen.add(traces)
            traces = source.inputs["traces"].key  # the same traces, but those were scored
        scored = [one.inputs["scores"]] if "scores" in one.inputs else []
        scored += [
            run.ref for run in self.runs() if run.inputs.get("traces", run.ref).key == traces
        ]
        return {
            "traces": traces,
            "scores": next((ref.key for ref in scored if ref.key in self.manifests), None),
            "rank": config.get("rank"),
            "fits": bool(config.get("fits")),
            "order": config.get("order", "reward"),
            "count": one.metrics.get("traces"),
            "too_long": int(one.metrics.get("dropped_too_long", 0)),
        }

    def students_of(self, row: Row) -> list[Manifest]:
        """Return the students that learned from a trace's artifact, if by rank from its rank."""
        return [
            one
            for one in self.manifests.values()
            if one.stage in ("student-sft", "student-grpo")
            and (learned := self.learned(one.ref.key))
            and learned["traces"] == row["traces_run"]
            and (learned["order"] != "reward" or learned["rank"] in (None, row["rank"]))
        ]

    @lru_cache(maxsize=1)  # noqa: B019
    def results(self) -> dict[str, list[Row]]:
        """Return the scores of each evaluated model, by its key."""
        scored = [one for one in self.manifests.values() if "eval_scores" in one.tables]
        sql = "select * from eval_scores order by model, task, metric"
        rows = self.rows_of("eval_scores", scored, sql) if scored else []
        return {key: list(found) for key, found in groupby(rows, itemgetter("model"))}

    # ------------------------------------------------------------ GRPO
    def trained(self) -> list[Manifest]:
        """Return the artifacts with completions of GRPO steps: teachers', whose tokens have
        log-probs, before students', the newest first."""
        found = [one for one in self.manifests.values() if "rollouts" in one.tables]
        found.sort(key=lambda one: one.finished_at, reverse=True)
        return sorted(found, key=lambda one: one.stage != "teacher-grpo")

    def steps(self, one: Manifest, question: str | None) -> list[Row]:
        """Return the logged steps (of a question): step, completions, mean and best reward."""
        return self.rows_of(
            "rollouts", [one],
            """select step, count(*) as completions, avg(reward) as mean, max(reward) as best
            from rollouts where question_id = coalesce(?, question_id) group by all order by all""",
            question,
        )  # fmt: skip

    def repeated(self, one: Manifest) -> dict[str, int]:
        """Return up to 50 questions of several logged steps, with their number of steps."""
        rows = self.rows_of(
            "rollouts", [one],
            """select question_id, count(distinct step) as steps from rollouts group by all
            having steps > 1 order by steps desc, question_id limit 50""",
        )  # fmt: skip
        return {row["question_id"]: row["steps"] for row in rows}

    def question_text(self, one: Manifest, name: str) -> str:
        """Return the text of a question of a training, or its id where it has left the store."""
        asked = one.inputs.get("questions")
        found = self.find("questions", asked.key, name) if asked else None
        return str(found["question"]) if found else name

    def completions(self, one: Manifest, step: int, question: str | None) -> list[Row]:
        """Return a step's completions (of a question) as rows of the index, by question and place,
        the best first."""
        badges = _badges({name: sql for name, sql in BADGES.items() if name != "too long"})
        order = "partition by question_id order by reward desc nulls last, sample"
        return self.rows_of(
            "rollouts", [one],
            f"""select *, step || '-' || sample as trace_id, len(token_ids) as think_tokens,
            {badges} as badges, row_number() over ({order}) as place
            from rollouts where step = ? and question_id = coalesce(?, question_id)
            order by question_id, place""", step, question,
        )  # fmt: skip

    def rows_of(
        self, table: str, manifests: Sequence[Manifest], sql: str, *given: Any
    ) -> list[Row]:
        """Run SQL on a table of some artifacts, read in place."""
        with self._lock:
            self._db.register(table, dataset(self.store, table, manifests))
            return self.ask(sql, *given)


def _badges(conditions: Mapping[str, str]) -> str:
    cases = ", ".join(f"case when {sql} then '{badge}' end" for badge, sql in conditions.items())
    return f"list_filter([{cases}], lambda badge: badge is not null)"


def number(name: str, text: str) -> float:
    """Return a parameter as a number. Raises UserError."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{name}={text}: give a number") from None
