"""SFT: what is learned, what is not, and that interruptions change nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Killed, assert_same_weights, context, kill_at, steps, stop_after, weights

from rlt_core.config import LoRA, SFTConfig, StageResources
from rlt_core.environment import in_one_line
from rlt_core.errors import Stopped, UserError
from rlt_core.models import load_model, load_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import IGNORED, Renderer, Row
from rlt_core.scoring.alignment import vocabulary_digest
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.sft import train_sft

CONFIG = SFTConfig(steps=7, batch_size=8, learning_rate=3e-3, warmup_ratio=0.2, lora=None)
Spaces = Callable[[str], Workspace]


@pytest.fixture(scope="module")
def rows(renderer: Renderer) -> list[Row]:
    traces = [(f"{a}+{b}=?", str(a + b), f"{a} and {b}" + " make" * (a % 3)) for a in range(4)
              for b in range(3)]  # fmt: skip
    return [renderer.teacher_sft_row(*trace) for trace in traces]


@pytest.fixture
def train(
    model: Path, rows: list[Row], tmp_path: Path, workspace: Spaces, resources: StageResources
) -> Callable[..., tuple[Path, dict[str, float]]]:
    def run(name: str, **changes: object) -> tuple[Path, dict[str, float]]:
        out = tmp_path / name
        what = {"rows": rows, "config": CONFIG}
        what |= {each: changes.pop(each) for each in what if each in changes}
        where = {"work": workspace(name), "resources": resources, "stage": "teacher-sft"} | changes
        return out, train_sft(model, **what, context=context(out, **where))

    return run


@pytest.fixture(scope="module")
def whole(
    model: Path,
    rows: list[Row],
    resources: StageResources,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The training with the settings above, never interrupted; its checkpoints are in `store`."""
    folder = tmp_path_factory.mktemp("whole")
    out, work = folder / "out", Workspace(Files(str(folder / "store")), "whole")
    train_sft(model, rows, CONFIG, context(out, work, resources, stage="teacher-sft"))
    return out


def test_loss_falls_and_every_step_is_recorded(train) -> None:
    config = CONFIG.model_copy(update={"steps": 40})
    out, metrics = train("run", config=config)
    rows = steps(out)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert metrics["loss_last"] < metrics["loss_first"]
    assert rows[-1]["epoch"] == pytest.approx(40 * 8 / 12)
    assert rows[0]["reward"] is None and rows[0]["grad_norm"] > 0
    assert {path.suffix for path in (out / "model").iterdir()} <= {
        ".json",
        ".jinja",
        ".safetensors",
    }


def test_epochs_give_steps(train) -> None:
    config = CONFIG.model_copy(update={"steps": None, "epochs": 2.0})
    _, metrics = train("run", config=config)
    assert metrics["steps"] == 3  # 24 rows in batches of 8


def test_first_loss_is_the_mean_over_labelled_tokens_of_the_batch(train, model, rows) -> None:
    config = CONFIG.model_copy(update={"steps": 1, "batch_size": 12})
    out, _ = train("run", config=config)
    losses, count = 0.0, 0
    start = load_model(model)
    for row in rows:
        logits = start(torch.tensor([row.input_ids])).logits[0, :-1].double()
        labels = torch.tensor(row.labels[1:])
        losses += torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORED, reduction="sum"
        ).item()
        count += int((labels != IGNORED).sum())
    assert steps(out)[0]["loss"] == pytest.approx(losses / count, rel=1e-5)


def test_micro_batches_change_nothing_but_rounding(train, resources) -> None:
    whole, _ = train("whole", resources=resources.model_copy(update={"micro_batch_size": 8}))
    cut, _ = train("cut", resources=resources.model_copy(update={"micro_batch_size": 3}))
    assert_same_weights(whole, cut, 2e-4)


def test_same_seed_same_bytes(train) -> None:
    first, second, other = train("a")[0], train("b")[0], train("c", seed=1)[0]
    assert weights(first) == weights(second)
    assert steps(first) == steps(second)
    assert weights(first) != weights(other)


@pytest.mark.parametrize(
    ("interrupt", "lora"),
    [(stop_after(3), None), (kill_at(4), None), (kill_at(7), LoRA(rank=2, alpha=4, dropout=0.3))],
)
def test_an_interrupted_run_ends_bit_equal(
    train, whole: Path, interrupt: Progress, lora: LoRA | None
) -> None:
    config = CONFIG.model_copy(update={"lora": lora})
    whole = train("whole", config=config)[0] if lora else whole
    with pytest.raises((Stopped, Killed)):
        train("broken", config=config, progress=interrupt)
    broken, _ = train("broken", config=config)
    assert weights(broken) == weights(whole)
    assert steps(broken) == steps(whole)


def test_a_finished_checkpoint_still_gives_a_model(train, workspace: Spaces, resources) -> None:
    config = CONFIG.model_copy(update={"steps": 4})
    whole, _ = train("whole", config=config)
    assert workspace("whole").parts("checkpoints") == ["00000002", "00000004"]
    again, metrics = train("again", config=config, work=workspace("whole"))
    assert weights(again) == weights(whole) and metrics["steps"] == 4


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_a_full_disk_keeps_the_last_whole_checkpoint(
    train, whole: Path, tmp_path: Path, workspace: Spaces,
    small_disk: Callable[[Path, str], Path], share: float,
) -> None:  # fmt: skip
    """It fills up before, while and after the weights of the second checkpoint are written."""
    place = tmp_path / "store" / "work"
    place.mkdir(parents=True)
    disk = small_disk(place / "broken", "64m")
    filler = disk / "filler"

    def fill(done: int, total: int, metrics: object) -> None:
        if done == 3:
            files = [each for each in disk.rglob("checkpoint-2/*") if each.is_file()]
            left = int(share * sum(each.stat().st_size for each in files))
            status = os.statvfs(disk)
            filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - left)))

    with pytest.raises(OSError) as full:
        train("broken", progress=Progress(report=fill))
    said = in_one_line(full.value, disk)
    assert said and f"disk full: {disk}" in said and "continues from the last" in said
    assert workspace("broken").parts("checkpoints") == ["00000002"]
    assert not [each for each in disk.rglob("*") if "00000004" in each.parts and each.is_file()]
    filler.unlink()
    broken, _ = train("broken")
    assert weights(broken) == weights(whole) and steps(broken) == steps(whole)


def test_rows_too_long_are_dropped_and_counted(train, whole, rows) -> None:
    long = Row(rows[0].input_ids + [5] * 200, rows[0].labels + [5] * 200)
    out, metrics = train("long", rows=[*rows, long])
    assert metrics["dropped_too_long"] == 1 and metrics["rows"] == len(rows)
    assert weights(out) == weights(whole)


def test_no_row_left_is_the_users_mistake(train) -> None:
    with pytest.raises(UserError, match="none of 12 training rows fits into 5 tokens"):
        train("run", config=CONFIG.model_copy(update={"max_tokens": 5}))


def test_lora_gives_a_plain_model(train, model: Path) -> None:
    config = CONFIG.model_copy(update={"lora": LoRA(rank=2, alpha=4), "learning_rate": 1e-2})
    out, _ = train("run", config=config)
    start = load_file(model / "model.safetensors")
    trained = load_file(out / "model/model.safetensors")
    assert start.keys() == trained.keys()
    moved = {name for name in start if not torch.equal(start[name], trained[name])}
    assert moved and all("proj" in name for name in moved)
    assert load_model(out / "model").config.architectures == ["LlamaForCausalLM"]


@pytest.mark.parametrize("multiplies", [True, False])
def test_bfloat16_adds_up_updates_below_its_precision(
    train, model: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    """So it does on a CPU that cannot multiply bfloat16 and computes in float32."""
    monkeypatch.setattr("rlt_core.models.bfloat16_on_cpu", lambda: multiplies)
    changes = {"dtype": "bfloat16", "steps": 30, "learning_rate": 3e-5, "schedule": "constant"}
    out, _ = train("run", config=CONFIG.model_copy(update=changes))
    start, trained = (load_file(m / "model.safetensors") for m in (model, out / "model"))
    assert {tensor.dtype for tensor in trained.values()} == {torch.bfloat16}
    projections = [name for name in start if "proj" in name]
    moved = torch.cat([(start[n].bfloat16() != trained[n]).flatten() for n in projections])
    assert moved.float().mean() > 0.5  # in bfloat16 alone, such steps leave most weights in place


def test_a_run_warms_up_keeps_two_checkpoints_and_what_the_start_model_is(
    whole: Path, model: Path
) -> None:
    """Trainer turns the cache of keys and values off, without which writing text is slow."""
    rates = [row["learning_rate"] for row in steps(whole)]
    assert rates[0] < rates[1] == pytest.approx(3e-3 / 2)
    assert max(rates) == pytest.approx(3e-3) and rates[-1] < rates[-2] < rates[-3]
    work = Workspace(Files(str(whole.parent / "store")), "whole")
    assert work.parts("checkpoints") == ["00000004", "00000006"]
    first, second = (json.loads((m / "config.json").read_text()) for m in (model, whole / "model"))
    assert first.get("use_cache", True) and first == second
    before, after = load_tokenizer(model), load_tokenizer(whole / "model")
    assert vocabulary_digest(before) == vocabulary_digest(after)
    assert before.chat_template == after.chat_template
