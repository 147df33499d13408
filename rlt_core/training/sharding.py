"""Weights, gradients and AdamW states sharded over the processes of a training (FSDP2).

`fully_shard` of torch (https://docs.pytorch.org/docs/2.13/distributed.fsdp.fully_shard.html) splits
every tensor along its first dimension; a layer is gathered when it computes and freed afterwards.
It is called here, not by accelerate, which shards on GPUs only, and with the mathematics of an
unsharded training: float32 weights, bfloat16 where autocast uses it. The processes must make equal
numbers of forward calls, except inside `whole`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from rlt_core import processes
from rlt_core.config import StageResources
from rlt_core.models import pick_device


def shard(model: nn.Module, resources: StageResources, bfloat16: bool) -> None:
    """Shard a model that every process has mapped from its file, so that main memory has it once.

    Weights become float32, unless they are frozen. At most one layer is whole on the device. With
    `bfloat16` a layer's linear maps are gathered in it: autocast would cast their weights as well,
    but keep all copies until the backward pass. Adapters are gathered apart from the frozen maps: a
    group is freed once all of it has computed, and in a pass of the reference, which is the policy
    without adapters, adapters never compute.
    """
    mesh = _mesh(resources)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            _to_float32(layer, mesh)
            if bfloat16:
                maps = [each for each in layer.modules() if isinstance(each, nn.Linear)]
                for trained in (False, True):
                    group: list[nn.Module] = [
                        each for each in maps if each.weight.requires_grad is trained
                    ]
                    if group:
                        fully_shard(group, mesh=mesh, mp_policy=half)
                for each in layer.modules():
                    if isinstance(each, LoraLayer):  # it reads a dtype before it is gathered
                        each.cast_input_dtype_enabled = False
            fully_shard(layer, mesh=mesh)
    _to_float32(model, mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    first = torch.autocast(mesh.device_type, torch.bfloat16, enabled=bfloat16)
    with torch.no_grad(), first:  # the first call must run the whole model; scoring's does not
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=mesh.device_type))


def _mesh(resources: StageResources) -> DeviceMesh:
    """All processes, or (machines, processes of each): each machine then has a whole copy."""
    device, world = pick_device(resources.device), processes.count()
    if resources.sharding == "fsdp":
        return init_device_mesh(device, (world,))
    together = processes.of_this_machine()
    shape = (world // together, together)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():  # new groups lack the timeout that `join` set
        _set_pg_timeout(processes.WAIT, group)
    return mesh


def is_sharded(model: object) -> bool:
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model in every process, for forward calls without gradients; each process
    may make as many as it needs.

    Memory of each process: all linear maps of the layers in bfloat16 (float32 if the training
    computes in it), the embeddings in float32. An unsharded model stays as it is.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes, by name; tied ones once."""
    return {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}


def full(value: Any) -> Any:
    """Gather a sharded tensor in every process; return anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(state: Any) -> Any:
    """Gather the sharded tensors of a nested state: on the CPU in the first process, empty in the
    others. All must call it. One tensor at a time is whole on the accelerator."""

    def gather(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        if processes.rank() != 0:
            return tensor.new_empty(0)
        # A copy: on a CPU the whole tensor is part of a buffer, which safetensors refuses.
        return tensor.to("cpu", copy=True)

    return tree_map(gather, state)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Map the tensors of a checkpoint's model or adapters into memory."""
    files = sorted(folder.glob("*model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def load_weights(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Copy whole weights into the tensors of the same names; each process takes its share."""
    for name, tensor in tensors.items():
        tensor.copy_(_share(whole[name], tensor))


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an unsharded optimiser; each process takes its share."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shared = {
        place: {
            name: _share(value, parameters[place]) if value.dim() else value
            for name, value in tensors.items()
        }
        for place, tensors in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shared})


def _share(whole: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor, sharded like another."""
    if not isinstance(like, DTensor):
        return whole
    tensor = whole.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def _to_float32(module: nn.Module, mesh: DeviceMesh) -> None:
    """On the device: on the CPU, each process would make a copy of its own."""
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(mesh.device_type, torch.float32)
