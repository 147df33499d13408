"""Commands on a finished run."""

import json
import re
import time
from pathlib import Path

import pytest

from flows.planning import Plan
from flows.schedule import seen_seconds
from rlt_core.graph import _said
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tests.chat_server import Reply, completion, serve
from tests.flows.conftest import Rlt

GRPO = "student-grpo[rlt]@0"
ON_DEMAND = {
    "trace-selection",
    "trace-import",
    "trace-refinement",
    "endpoint-generation",
    "score-import",
}


def test_every_stage_committed_and_every_file_is_intact(smoke_store: Path) -> None:
    manifests = list(Store(str(smoke_store)).manifests())
    assert {manifest.stage for manifest in manifests} == set(STAGES) - ON_DEMAND
    store = Store(str(smoke_store))
    assert [problem for manifest in manifests for problem in store.verify(manifest)] == []
    assert store.orphans() == [] and store.working() == {}
    assert store.files.names("work") == []


def test_again_is_all_hits(rlt: Rlt, smoke_store: Path) -> None:
    before = {m.ref.key: m.attempt for m in Store(str(smoke_store)).manifests()}
    done = rlt("run", "--profile", "smoke", "--store", str(smoke_store))
    assert done.returncode == 0, done.stderr
    assert "report.md" in done.stdout and "evaluation" not in done.stderr
    assert {m.ref.key: m.attempt for m in Store(str(smoke_store)).manifests()} == before


def test_the_config_of_the_run_plans_the_same_nodes(rlt_inside: Rlt, smoke_store: Path) -> None:
    (file,) = (smoke_store / "runs").glob("*.json")
    done = rlt_inside("plan", "--config", str(file), "--store", str(smoke_store), "--json")
    rows = json.loads(done.stdout)
    assert len(rows) > 20 and all(row["hit"] for row in rows)


def test_plan_names_the_changed_field(rlt_inside: Rlt, smoke_store: Path) -> None:
    arguments = ("plan", "--profile", "smoke", "--store", str(smoke_store))
    done = rlt_inside(*arguments, "--set", "teacher_grpo.learning_rate=2e-6", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["teacher-grpo@0"]["changes"] == ["grpo.learning_rate: 0.0001 → 2e-06"]
    assert rows["teacher-sft@0"]["hit"] and not rows["report"]["hit"]
    shown = rlt_inside(*arguments).stdout
    assert "0 to compute" in shown and "→" not in shown


def test_plan_folds_what_is_there_and_what_only_follows(rlt_inside: Rlt, smoke_store: Path) -> None:
    plan = ("plan", "--profile", "smoke", "--store", str(smoke_store), "--set")
    shown = rlt_inside(*plan, "teacher_grpo.learning_rate=2e-6").stdout.splitlines()
    assert shown[0].startswith("teacher-grpo@0 ") and shown[3].startswith("25 nodes: 15 in the")
    assert shown[1] == "    grpo.learning_rate: 0.0001 → 2e-06"
    assert shown[2].startswith("    → 9 that read it: trace-generation (2), ")
    assert re.search(r"^about \d.* on the CPU, one node at a time", shown[4])
    everywhere = rlt_inside(*plan, "student_sft.steps=300", "--changed").stdout
    assert everywhere.count("    sft.steps: 3 → 300\n") == 4, "each student of its own"
    assert "evaluation[rlt]@0" in everywhere and "    reads student-sft[rlt]@0\n" in everywhere
    for value, said in (("null", "null"), ("true", "true"), ('["a"]', '["a"]'), ('"x y"', "x y")):
        assert _said({"a": json.loads(value)}, "a") == said
    other = rlt_inside("plan", "--profile", "tiny", "--store", str(smoke_store)).stdout
    assert other.count("\n    new\n") == 1, "another profile's artifacts are no earlier ones"


def test_seconds_are_those_of_the_tokens_that_were_seen(smoke_store: Path) -> None:
    def seconds(*changes: str) -> dict[str, float]:
        plan = Plan.of("full-pipeline", "smoke", changes, store=str(smoke_store))
        found = seen_seconds(plan)
        return {node.name: found[node.key] for node in plan.missing}

    once, twice = (seconds(f"student_sft.steps={steps}") for steps in (30, 60))
    name = "student-sft[dataset]@0"
    assert twice[name] == pytest.approx(2 * once[name]) and once[name] > 0
    assert seconds() == {}


def test_one_stage_alone_is_a_target(rlt: Rlt, smoke_store: Path) -> None:
    done = rlt("run", "teacher-grpo", "--profile", "smoke", "--store", str(smoke_store), "--json")
    answer = json.loads(done.stdout)
    assert answer["status"] == 0
    assert all(node["committed"] for node in answer["nodes"])
    assert answer["nodes"][-1]["name"] == "teacher-grpo@0"


def test_an_llm_is_a_teacher_within_a_budget(
    rlt: Rlt, rlt_inside: Rlt, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeds share the budget; each answer takes 15 tokens, and longer than a look at what the
    other seed has spent."""

    def answer(*_: object) -> Reply:
        time.sleep(0.3)
        return completion("because")

    changes = [
        "seeds=[0,1]", "endpoint_teacher.name=gpt", "endpoint_teacher.model=m",
        "endpoint_teacher.n_questions=4",
    ]  # fmt: skip
    command = ["run", "endpoint-generation", "--profile", "smoke", "--store", str(store)]
    command += [word for change in changes for word in ("--set", change)]
    monkeypatch.setenv("RLT_REFINE_KEY", "none")
    monkeypatch.setenv("RLT_REFINE_CONCURRENCY", "1")
    with serve(answer) as server:
        monkeypatch.setenv("RLT_REFINE_BASE_URL", server.url)
        first = rlt(*command, "--set", "resources.budget_tokens=60")
        assert first.returncode == 2, first.stdout + first.stderr
        assert 4 <= len(server.seen) <= 5, "one request of each node may be under way"
        assert "tokens of resources.budget_tokens=60 are spent; " in first.stdout
        assert "Traceback" not in first.stdout + first.stderr
        shown = rlt_inside("plan", *command[1:]).stdout
        done = [int(n) for n in re.findall(r": 4 requests, (\d) of them answered", shown)]
        assert sum(done) % 4 == len(server.seen) % 4, shown  # a node with all four is a hit
        last = rlt(*command, "--set", "resources.budget_tokens=120")
        assert last.returncode == 0, last.stdout + last.stderr
    seeds = [body["seed"] for body in server.seen]
    assert len(seeds) == 8 and set(seeds) == {0, 1}, "a seed of its own for each training seed"


def test_a_loop_that_cannot_begin_is_no_success(rlt: Rlt, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("where the store keeps configs")
    done = rlt("run", "base-model", "--profile", "smoke", "--store", str(tmp_path))
    assert done.returncode == 2 and "cannot be written" in done.stderr, done.stdout


def test_tables_answer(rlt_inside: Rlt, smoke_store: Path) -> None:
    query = "select rank, avg(reward) as reward from scores group by rank order by rank"
    done = rlt_inside("sql", query, "--store", str(smoke_store), "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    ranked = [row["reward"] for row in rows if row["rank"] is not None]
    assert len(ranked) == 4 and ranked[0] == max(ranked)
    joined = rlt_inside(
        "sql",
        "select count(*) as n from scores s join artifacts a using (run) where a.stage = "
        "'trace-scoring' and len(s.student_solution_logprobs) = s.solution_tokens",
        "--store", str(smoke_store), "--format", "json",
    )  # fmt: skip
    assert json.loads(joined.stdout)[0]["n"] > 0


def test_report_and_status(rlt_inside: Rlt, smoke_store: Path) -> None:
    text = rlt_inside("report", "--full", "--store", str(smoke_store)).stdout
    assert "positive control" in text
    shown = rlt_inside("report", "--store", str(smoke_store)).stdout  # what all rows have in common
    assert re.search(r"^All rows: score 0\.0 ", shown, re.MULTILINE)
    status = rlt_inside("status", "--store", str(smoke_store))
    assert "smoke" in status.stdout and "with its report" in status.stdout


def test_an_altered_input_is_one_clear_error(rlt: Rlt, rlt_inside: Rlt, store: Path) -> None:
    opened = Store(str(store))
    [weights] = opened.intact(opened.find("smoke/base-model")).rglob("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    verified = rlt_inside("artifacts", "verify", "--store", str(store))
    assert verified.returncode != 0
    assert "model.safetensors" in verified.stdout + verified.stderr
    done = rlt(
        "run", "teacher-sft", "--profile", "smoke", "--store", str(store),
        "--set", "teacher_sft.learning_rate=0.5",
    )  # fmt: skip
    assert done.returncode == 2
    assert "model.safetensors: altered" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --profile tinny", "did you mean 'tiny'"),
        ("run teacher-grop", "did you mean 'teacher-grpo'"),
        ("plan --set teacher_grpo.learning_rat=1", "learning_rate"),
        ("plan --set data.source=missing.jsonl", "missing.jsonl"),
        ("run --store file/store", "cannot be written"),
        ("artifacts show abc --store .", "no artifact"),
        ("report --store .", "no report"),
        ("artifacts list", "no store at"),
        ("sql from_scores", "no store at"),
        ("status", "no store at"),
        ("report", "no store at"),
        (
            "run table-2 --set trace_refinement.name=gpt --set trace_refinement.model=m",
            "RLT_REFINE_BASE_URL is not set",
        ),
        (
            "run --set endpoint_teacher.name=gpt --set endpoint_teacher.model=m",
            "RLT_REFINE_BASE_URL is not set",
        ),
        (
            "plan --set endpoint_teacher.name=rlt --set endpoint_teacher.model=m",
            "two nodes would be named 'student-sft[rlt]'",
        ),
        ("artifacts verify", "no store at"),
        ("artifacts gc", "no store at"),
        ("artifacts pull --all --from nothing", "no store at"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(
    command: str, message: str, rlt_inside: Rlt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    place = [] if "--store" in command else ["--store", "store"]
    done = rlt_inside(*command.split(), *place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "store").exists()
