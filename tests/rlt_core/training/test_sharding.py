"""What FSDP2 shares out stays the training of one process; any layout goes on from its checkpoints.

Two gloo processes on a CPU shard as two GPUs do.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training_runs import (
    FORMAT,
    TEACHER,
    assert_same_weights,
    context,
    launch,
    steps,
    weights,
)

from rlt_core.config import ScratchModel, SFTConfig, StageResources
from rlt_core.errors import UserError
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.base import train_base
from rlt_core.training.policy import load_policy

HEADER = """
import json, sys
from pathlib import Path
import torch
from rlt_core.config import LoRA, SFTConfig, StageResources
from rlt_core.models import load_model
from rlt_core.processes import join, rank
from rlt_core.training import sharding

model, folder, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
"""
PARTS = """
join(StageResources(device="cpu"))
plain, shared = load_model(model), load_model(model)
shared.config.use_cache = False  # as it is in what another trainer has saved
sharding.shard(shared, StageResources(device="cpu", sharding="fsdp"), options["bfloat16"])
mine = sum(each.to_local().numel() for each in shared.parameters())
ids = torch.arange(2, 30).view(2, 14)

def calls(count):
    with torch.no_grad():
        return [shared(input_ids=ids[:, : 5 + i]).logits for i in range(count)][-1]

with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options["bfloat16"]):
    together = torch.equal(calls(1), plain(input_ids=ids[:, :5]).logits)
    with sharding.whole(shared):
        count = 1 + 3 * rank()  # the second process calls more often
        apart = torch.equal(calls(count), plain(input_ids=ids[:, : 4 + count]).logits)
        decoder = shared.model(input_ids=ids).last_hidden_state  # as scoring calls it
        apart = apart and torch.equal(decoder, plain.model(input_ids=ids).last_hidden_state)
again = sum(each.to_local().numel() for each in shared.parameters())
whole = sharding.gathered(sharding.trained(shared))
expected = dict(plain.named_parameters()) if rank() == 0 else {}
mesh = sharding._mesh(StageResources(device="cpu", sharding="hybrid"))
groups = [torch.distributed.group.WORLD, *mesh.get_all_groups()]
backends = [group._get_backend(torch.device("cpu")) for group in groups]
result = {
    "patience_s": min(backend.options._timeout.total_seconds() for backend in backends),
    "share": mine / plain.num_parameters(), "share_again": again / plain.num_parameters(),
    "together": together, "apart": apart, "elsewhere": sum(each.numel() for each in whole.values()),
    "gathered": all(torch.equal(whole[name], each) for name, each in expected.items()),
}
(folder / f"result-{rank()}.json").write_text(json.dumps(result))
"""
SFT = """
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.models import load_tokenizer
from rlt_core.prompts.renderer import Renderer
from rlt_core.store import Workspace
from rlt_core.store.files import Files
from rlt_core.training.context import TrainingContext
from rlt_core.training.sft import train_sft

renderer = Renderer(load_format("tiny"), load_tokenizer(model))
rows = [
    renderer.teacher_sft_row(f"{a}+{b}=?", str(a + b), f"{a} and {b}" + " make" * (a % 3))
    for a in range(4) for b in range(3)
]
config = SFTConfig(
    steps=6, batch_size=8, learning_rate=3e-3, dtype=options.get("dtype", "float32"),
    lora=LoRA(rank=4, dropout=options.get("dropout", 0)) if options.get("lora") else None,
)
resources = StageResources(
    device="cpu", micro_batch_size=2, checkpoint_every_steps=2, processes=2,
    sharding=options.get("sharding", "none"), gradient_checkpointing=options.get("again", False),
)
done = [0]
progress = Progress(
    report=lambda step, total, metrics: done.__setitem__(0, step),
    should_stop=lambda: done[0] + 1 == options.get("stop"),
)
work = Workspace(Files(str(folder / "store")), "key")
context = TrainingContext("teacher-sft", 0, folder / "out", work, resources, progress)
train_sft(model, rows, config, context)
"""
REFERENCE = """
from torch.distributed.tensor import DTensor
from peft import get_peft_model
from rlt_core.training.policy import adapters

join(StageResources(device="cpu"))
policy = get_peft_model(load_model(model, "bfloat16"), adapters(LoRA(rank=4)))
sharding.shard(policy, StageResources(device="cpu", sharding="fsdp"), True)
layers, ids = policy.get_base_model().model.layers, torch.arange(2, 30).view(2, 14)
held = []

def look(*_):
    maps = [layer.mlp.down_proj.base_layer.weight for layer in layers]
    held.append(sum(not isinstance(each, DTensor) for each in maps))

for layer in layers:
    layer.register_forward_hook(look)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    policy(input_ids=ids)
    with policy.disable_adapter():
        policy(input_ids=ids)
(folder / f"result-{rank()}.json").write_text(json.dumps(held))
"""
SHARDED: dict[str, Any] = {"sharding": "fsdp"}


def run(body: str, processes: int, model: Path, folder: Path, **options: object) -> int:
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(HEADER + body)
    return launch(script, processes, model, folder, **options).returncode


def assert_same(one: Path, two: Path) -> None:
    """The same weights, number formats, configuration and losses, but for rounding."""
    assert_same_weights(one, two, 1e-6)
    assert (one / "model/config.json").read_text() == (two / "model/config.json").read_text()
    assert len(steps(one)) == len(steps(two)) == 6
    for here, there in zip(steps(one), steps(two), strict=True):
        for name in ("loss", "grad_norm"):
            assert there[name] == pytest.approx(here[name], rel=1e-4), name


@pytest.mark.parametrize(
    "config", [SFTConfig(steps=1, batch_size=4, learning_rate=1e-3), TEACHER], ids=["sft", "grpo"]
)
def test_one_process_cannot_shard(model: Path, config: SFTConfig) -> None:
    with pytest.raises(UserError, match=r"^resources\.sharding=fsdp .* raise resources\.processes"):
        load_policy(model, config, StageResources(device="cpu", sharding="fsdp"))


@pytest.mark.slow
@pytest.mark.parametrize("bfloat16", [False, True])
def test_each_process_holds_its_share_and_may_have_the_whole(
    tmp_path: Path, model: Path, bfloat16: bool
) -> None:
    assert run(PARTS, 2, model, tmp_path, bfloat16=bfloat16) == 0
    first, second = (json.loads((tmp_path / f"result-{i}.json").read_text()) for i in (0, 1))
    for result in (first, second):
        assert result["share"] == result["share_again"] == pytest.approx(0.5, abs=0.01)
        assert result["together"] and result["apart"] and result["gathered"]
        assert result["patience_s"] > 6 * 3600  # the first one may be storing 400 GB
    assert first["elsewhere"] > 0 and second["elsewhere"] == 0


@pytest.mark.slow
def test_a_pass_without_adapters_lets_go_of_each_layer(tmp_path: Path, model: Path) -> None:
    """The policy's, then that of the reference: layers held once a layer has computed."""
    assert run(REFERENCE, 2, model, tmp_path) == 0
    assert json.loads((tmp_path / "result-0.json").read_text()) == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "lora": True}],
    ids=["float32", "bfloat16", "lora"],
)
def test_sharded_sft_is_that_of_one_process(
    tmp_path: Path, model: Path, options: dict[str, Any]
) -> None:
    one, two, again = (tmp_path / name for name in ("one", "two", "again"))
    assert run(SFT, 1, model, one, **options) == 0
    assert run(SFT, 2, model, two, **options, **SHARDED) == 0
    assert_same(one / "out", two / "out")
    assert run(SFT, 2, model, again, again=True, **options, **SHARDED) == 0
    assert_same(two / "out", again / "out")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_any_layout_goes_on_from_any_checkpoint(tmp_path: Path, model: Path, lora: bool) -> None:
    whole, same, fewer, more = (tmp_path / name for name in ("whole", "same", "fewer", "more"))
    assert run(SFT, 2, model, whole, lora=lora, **SHARDED) == 0
    assert run(SFT, 2, model, same, lora=lora, stop=3, **SHARDED) != 0
    assert not (same / "out").exists()
    shutil.copytree(same, fewer)
    assert run(SFT, 2, model, same, lora=lora, **SHARDED) == 0
    assert weights(same / "out") == weights(whole / "out")
    assert steps(same / "out") == steps(whole / "out")
    assert run(SFT, 1, model, fewer, lora=lora) == 0
    assert_same(whole / "out", fewer / "out")
    assert run(SFT, 1, model, more, lora=lora, stop=3) != 0
    assert run(SFT, 2, model, more, lora=lora, **SHARDED) == 0
    assert_same(whole / "out", more / "out")


@pytest.mark.slow
def test_dropout_goes_on_without_the_random_states_of_any_process(
    tmp_path: Path, model: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options: dict[str, Any] = {"lora": True, "dropout": 0.3}
    assert run(SFT, 2, model, whole, **options) == 0
    assert run(SFT, 2, model, broken, stop=3, **options) != 0
    assert not list(broken.glob("**/rng_state*"))
    assert run(SFT, 2, model, broken, **options) == 0
    assert weights(broken / "out") == weights(whole / "out")
    assert steps(broken / "out") == steps(whole / "out")


def test_the_base_model_is_trained_by_one_process_whatever_is_shared_out(tmp_path: Path) -> None:
    resources = StageResources(device="cpu", processes=2, sharding="fsdp")
    metrics = train_base(
        ScratchModel(layers=1, width=16, heads=2, steps=1, batch_size=4), [], FORMAT,
        context(tmp_path / "out", Workspace(Files(str(tmp_path / "store")), "key"), resources),
    )  # fmt: skip
    assert metrics["steps"] == 1 and weights(tmp_path / "out")
