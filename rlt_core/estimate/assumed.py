"""The assumptions of estimates, in words."""

from collections.abc import Iterator, Mapping, Sequence

from rlt_core.config import Config
from rlt_core.estimate import data, host, memory, work
from rlt_core.estimate.fit import unreachable_servers
from rlt_core.estimate.nodes import NodeEstimate, on_gpu, resources_of
from rlt_core.estimate.shapes import base_of
from rlt_core.graph import Node
from rlt_core.stages.cost import TEMPLATE


def assumptions(
    config: Config, nodes: Sequence[Node], found: Mapping[str, NodeEstimate]
) -> Iterator[str]:
    """Yield lines about lengths, throughput, memory, and models of unknown shape."""
    lengths = data.ASSUMED
    yield (
        f"Assumed until data and traces are in the store: questions of {lengths.question:g} "
        f"tokens, solutions {lengths.solution:g}, the data's own traces {lengths.trace:g}, what "
        f"models write {lengths.completion:g} or half of the limit; prompts of "
        f"{data.LONGEST + TEMPLATE} at most."
    )
    if any(each.on_gpu for each in found.values()):
        layouts = [resources_of(config, node) for node in nodes if found[node.key].on_gpu]
        cards = {work.gpu_of(layout) for layout in layouts}
        for card in sorted(cards, key=lambda card: card.gib):
            yield (
                f"{card.name}: {work.TRAINING:.0%} of {card.bf16 / 1e12:g} bf16 TFLOP/s in "
                f"training, {work.READING:.0%} in reading, {work.DECODING:.0%} of "
                f"{card.bandwidth / 1e12:g} TB/s in decoding; "
                f"{memory.USABLE:.0%} of its memory for tensors."
            )
        servers = {layout.vllm_server for layout in layouts} - {None}
        if servers:
            yield (
                f"To be started by you, its GPUs not counted: `vllm serve` at "
                f"{', '.join(sorted(map(str, servers)))} (docs/cluster.md)."
            )
        yield from (f"Before a run: {each}" for each in unreachable_servers(config, nodes))
        yield (
            "host: main memory of a machine; the files of models once, "
            f"{host.PROCESS / memory.GIB:g} GiB of each process, and what the first one gathers."
        )
    unknown = {
        str(base.config.model_dump().get("imported"))
        for node in nodes
        for base in [base_of(node)]
        if base is not None and found[node.key].gpus and found[node.key].parameters is None
    }
    if unknown:
        yield f"Unknown: the shape of {', '.join(sorted(unknown))}; run `rlt fetch`."
    if not any(on_gpu(resources_of(config, node)) for node in nodes):
        yield "On a CPU no hours are estimated, and memory is a process's."
