"""`rlt fetch`: download a profile's models and data sets from the hub, and pin their commits."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from flows.cli import options
from flows.cli.terminal import Console
from rlt_core import hf_hub
from rlt_core.config import Config, HubModel
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import BENCHMARKS
from rlt_core.experiments import ALL, require_target
from rlt_core.overrides import load_config

GIB = 1 << 30
SPARE = 1.1
"""Free disk required per byte to download."""


@dataclass(frozen=True)
class Wanted:
    """A repository on the hub."""

    repo: str
    revision: str | None
    kind: hf_hub.RepoType


def _wanted(config: Config, target: str) -> Iterator[Wanted]:
    """Yield the repositories of an experiment; only table 1 has a larger student and other trace
    sources."""
    sources = [config.base_model, config.reward_student, config.student]
    sources += [model.source for model in config.imports.models.values()]
    if bench := config.teacher_bench:
        sources += [*bench.teachers.values(), *bench.students.values()]
    data_sets = [config.data, config.rl_data, *config.imports.benchmarks.values()]
    if target in ("table-1", ALL):
        sources += [config.larger_student.model] if config.larger_student else []
        data_sets += [source.data for source in config.trace_sources.values()]
    for source in sources:
        if isinstance(source, HubModel):
            yield Wanted(source.repo, source.revision, "model")
    for data in data_sets:
        if data and data.source.startswith("hub:"):
            yield Wanted(data.source.removeprefix("hub:"), data.revision, "dataset")
    for name in config.evaluation.tasks:
        if name in BENCHMARKS:
            yield Wanted(BENCHMARKS[name].repo, config.evaluation.revisions.get(name), "dataset")


def fetch(
    target: options.TargetArgument = "full-pipeline",
    profile: options.ProfileOption = None,
    set_: options.SetOption = None,
    config_file: options.ConfigFileOption = None,
) -> None:
    """Download the models and data sets of a run, so that the run needs no network."""
    require_target(target)
    profile, changes = options.started_from(profile, config_file, set_)
    wanted = list(dict.fromkeys(_wanted(load_config(profile, changes), target)))
    console = Console()
    if not wanted:
        console.print(f"{target} of profile {profile} needs nothing from the hub")
        return
    sizes = {item: hf_hub.download_size(item.repo, item.revision, item.kind) for item in wanted}
    folder = hf_hub.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes.values()), shutil.disk_usage(folder).free
    if needed * SPARE > free:
        raise UserError(
            f"{profile} needs {needed / GIB:.1f} GiB of the hub, and {folder} has {free / GIB:.1f} "
            "GiB free; make room, or set HF_HOME to a larger disk"
        )
    for item in wanted:
        console.print(f"{item.repo}: {sizes[item] / GIB:.2f} GiB to download")
        commit = hf_hub.download(item.repo, item.revision, item.kind)
        console.print(f"{item.repo}@{commit}")
