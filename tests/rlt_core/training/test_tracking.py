"""Trackers: what arrives, once each, whatever stops the training; and what is refused."""

import json
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import TEACHER, Killed, context, kill_at, steps

from rlt_core.config import StageResources
from rlt_core.environment import require_tracker
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.grpo import train_grpo
from rlt_core.training.reward_function import Prompt, RewardFunction, Rewards

Train = Callable[..., Path]


class Lengths(RewardFunction):
    """Rewards short completions."""

    def __init__(self, renderer: Renderer) -> None:
        self.stop_ids = renderer.stop_ids
        self._renderer = renderer

    def __call__(self, prompts, completions, policy) -> Rewards:
        rewards = [-float(len(each.ids)) for each in completions]
        rows = [
            {"r_ss": reward, "copied": 0.25, "text": self._renderer.decode(each.ids)}
            for reward, each in zip(rewards, completions, strict=True)
        ]
        return Rewards(rewards, rows)


@pytest.fixture
def train(tmp_path: Path, model: Path, renderer: Renderer) -> Train:
    """Train with a tracker; returns the folder of the tables."""

    def run(tracker: str, progress: Progress | None = None) -> Path:
        resources = StageResources(
            device="cpu", micro_batch_size=4, checkpoint_every_steps=2, tracking=tracker,
            rollouts_every_steps=4,
        )  # fmt: skip
        rows = [{"question": f"{a}+{a}=?", "solution": str(2 * a)} for a in range(3, 9)]
        prompts = [Prompt(r["question"], renderer.teacher_prompt(**r), r) for r in rows]
        work = Workspace(Files(str(tmp_path / "store")), "key")
        given = context(tmp_path / "out", work, resources, progress=progress)
        train_grpo(model, prompts, Lengths(renderer), TEACHER, "node", given)
        return tmp_path / "out"

    return run


def interrupted(train: Train, tracker: str) -> Path:
    """Kill a training after it has sent a step behind its checkpoint; then continue it."""
    with pytest.raises(Killed):
        train(tracker, kill_at(4))
    return train(tracker)


def expected(out: Path) -> dict[str, list[float]]:
    names = ("reward", "r_ss", "copied", "rollout_gap_max", "grad_norm", "completion_tokens")
    return {name: [row[name] for row in steps(out)] for name in names}


def test_tensorboard_has_each_step_once(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = interrupted(train, "tensorboard")
    (folder,) = (tmp_path / "store" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    for name, values in expected(out).items():
        found = events.Scalars(f"train/{name}")
        assert [each.step for each in found] == [1, 2, 3, 4, 5], name
        assert [each.value for each in found] == pytest.approx(values, rel=1e-5), name
    assert len(events.Scalars("train/kl")) == 5  # TRL's
    texts = events.Tensors("train/completions/text_summary")
    assert [each.step for each in texts] == [1, 4, 5]
    sampled = [row["text"] for row in read_rows(out, "rollouts") if row["step"] == 1]
    shown = texts[0].tensor_proto.string_val[0].decode()
    assert shown.count("\n") == len(sampled) + 1
    assert all(" ".join(text.replace("|", "\\|").split()) in shown for text in sampled)


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trackio writes: it has read TRACKIO_DIR when TRL imported it."""
    pytest.importorskip("trackio")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return tmp_path / "trackio"


def test_trackio_has_each_step_once_and_nothing_leaves_the_machine(
    train: Train, trackio_folder: Path, no_network: list[object]
) -> None:
    out = interrupted(train, "trackio")
    (file,) = trackio_folder.glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select metrics from metrics order by id").fetchall()
    logged = [json.loads(metrics) for (metrics,) in rows]
    assert [each["train/global_step"] for each in logged] == [1, 2, 3, 4, 5]
    for name, values in expected(out).items():
        assert [each[f"train/{name}"] for each in logged] == pytest.approx(values), name
    assert ["train/completions" in each for each in logged] == [True, False, False, True, True]
    assert no_network == []


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses, other than loopback's, that something connects to."""
    import socket

    asked: list[object] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):  # type: ignore[index]
            asked.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    return asked


def test_a_tracker_that_fails_is_left_out_with_one_warning(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "tensorboard").write_text("a file where the folder would be")
    assert len(steps(train("tensorboard"))) == 5
    said = [each.getMessage() for each in caplog.records if "goes on without it" in each.message]
    assert len(said) == 1 and said[0].startswith("tensorboard failed")


def test_a_tracker_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tracker("none")
    monkeypatch.setattr("rlt_core.environment.find_spec", lambda name: None)
    for name in ("trackio", "tensorboard", "wandb"):
        with pytest.raises(UserError, match=rf"{name} is not installed; pip install"):
            require_tracker(name)
    monkeypatch.setattr("rlt_core.environment.find_spec", lambda name: object())
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    logins = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(logins))
    with pytest.raises(UserError, match="no login; run `wandb login`"):
        require_tracker("wandb")
    logins.write_text("machine api.wandb.ai login user password secret\n")
    require_tracker("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no login"):
        require_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    require_tracker("wandb")
