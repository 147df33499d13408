"""From the config to nodes: one method per stage, so that equal work has equal keys."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlt_core import hf_hub
from rlt_core.config import (
    ArtifactModel,
    Config,
    DataConfig,
    FolderModel,
    Frozen,
    GenerationConfig,
    HubModel,
    KLEstimator,
    ModelSource,
    PackageModel,
    RankedSet,
    RewardSpec,
    ScratchModel,
    SFTConfig,
    StudentSFTConfig,
)
from rlt_core.data.sources import GENERATED, check_file, data_digest, file_digest, is_file
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import BENCHMARKS, require_known
from rlt_core.extensions import is_path
from rlt_core.graph import Node, by_name
from rlt_core.hf_hub import source_digest
from rlt_core.prompts.format import load_format
from rlt_core.stages import STAGES

MAX_PATH = 256
"""Maximum length of a text that may be a file's path."""


def _text_or_file(given: str, field: str) -> str:
    """Return a text, or the content of a file. One word is a path."""
    path = Path(given)
    if len(given) < MAX_PATH and path.is_file():
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{field}={given!r} cannot be read as UTF-8: {error}") from None
    if given and len(given.split()) < 2:
        raise UserError(f"{field}={given!r}: no such file (paths start at {Path.cwd()})")
    return given


def _identified(data: DataConfig, paths: dict[str, str]) -> DataConfig:
    """Return a data set whose local files are named by content; `paths` receives where they are."""
    if data.test_source is not None:
        digest = file_digest(data.test_source, "data.test_source")
        paths[digest] = str(Path(data.test_source).absolute())
        data = data.replaced(test_source=digest)
    if data.source.startswith("hub:"):
        commit = hf_hub.pinned(data.source.removeprefix("hub:"), data.revision, "dataset")
        return data.replaced(revision=commit)
    if data.source in GENERATED or is_path(data.source):
        return data
    digest = data_digest(data)
    paths[digest] = str(Path(data.source).absolute())
    return data.replaced(source=digest)


def _only(base: type[Frozen], value: Frozen) -> Any:
    """Return the fields of a base class, without those that only shape the graph."""
    return base.model_validate({name: getattr(value, name) for name in base.model_fields})


def off_policy(stage: str, config: Mapping[str, Any], writer: str | None, teacher: str) -> str:
    """Return why traces are not samples of a teacher; empty: they are. `stage`, `config` and
    `writer` (key of the model) tell how the traces were made."""
    if stage == "trace-refinement":
        return "refined"
    if stage == "trace-import":
        return "imported" if config["digest"] else "the data set's own"
    if config.get("context") == "student":
        return "written without the solution"
    return "" if writer == teacher else "written by another model"


def with_estimator(
    scoring: Frozen, config: Config, reason: str, kl: KLEstimator | None = None
) -> Frozen:
    """Return a `TraceScoringConfig` for traces that are off-policy for a reason, or on-policy where
    it is empty. `kl` is used in place of the config's estimator."""
    kl = kl or (config.trace_scoring.off_policy_kl if reason else config.reward.kl)
    if kl == "full" and config.reward.alignment == "text":
        kl = "k3"  # never negative either, and it needs no common vocabulary
    reward = config.reward.replaced(kl=kl)
    return scoring.replaced(reward=reward, off_policy=reason)


class NoTraces(UserError):
    """The data has no traces of its own."""


class Nodes:
    """Builds the nodes of one config."""

    def __init__(self, config: Config) -> None:
        require_known(config.evaluation.tasks, config.imports.benchmarks)
        self.config = config
        system: dict[str, str | None] = {}
        if config.teacher_system is not None:
            system["teacher_system"] = _text_or_file(config.teacher_system, "teacher_system")
        if config.data.fields.system:
            system["student_system"] = None
        self.format = load_format(config.prompt_format).model_copy(update=system)
        """The prompt format with the system prompts that the config names."""

    def node(
        self,
        stage: str,
        inputs: Mapping[str, Node],
        variant: str = "",
        seed: int | None = None,
        paths: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Node:
        """Return a node of any stage. `fields` are the stage's config without `format`, `seed` and
        `engine`, which are filled in. Raises ValueError for an input that it does not declare."""
        declared, inputs = STAGES[stage], dict(inputs)
        if declared.inputs is not None and (other := inputs.keys() - declared.inputs.keys()):
            raise ValueError(f"{stage} declares no input {', '.join(sorted(other))}")
        engine = self.config.resources.of(stage, variant).engine
        common = {
            "format": self.format,
            "seed": seed or 0,
            "engine": engine if is_path(engine) else "",
        }
        filled = {name: common[name] for name in common if name in declared.config.model_fields}
        config = declared.config(**filled | fields)
        format = getattr(config, "format", None)
        if format and format.student_system is None and stage != "dataset-prep":
            inputs["system"] = self.questions
        return Node(declared, config, inputs, variant, seed, dict(paths or {}))

    # ------------------------------------------------------------ data and models
    def questions_of(self, data: DataConfig, variant: str = "") -> Node:
        """Return the questions of a data set; training questions of others than `config.data` are
        compared with its test questions as well."""
        paths: dict[str, str] = {}
        identified = _identified(data, paths)
        base = self.config.base_model
        inputs = {} if isinstance(base, ScratchModel) else {"tokenizer": self.model(base)}
        if data != self.config.data and self.config.data.n_test:
            inputs["tested"] = self.questions
        benchmarks = self._own_benchmarks(self.config.evaluation.tasks, paths)
        evaluated = {
            name: self._benchmark_commit(name) if name in BENCHMARKS else ""
            for name in sorted(self.config.evaluation.tasks)
            if name != "test" and name not in benchmarks
        }
        return self.node(
            "dataset-prep", inputs, variant, paths=paths,
            data=identified, evaluated=evaluated, benchmarks=benchmarks,
        )  # fmt: skip

    def _own_benchmarks(self, tasks: Sequence[str], paths: dict[str, str]) -> dict[str, DataConfig]:
        """Return the user's own among these tasks, by content; `paths` receives their files."""
        own = self.config.imports.benchmarks
        return {name: _identified(own[name], paths) for name in tasks if name in own}

    def _benchmark_commit(self, name: str) -> str:
        """Return the commit of a benchmark's data set on the hub."""
        revision = self.config.evaluation.revisions.get(name)
        return hf_hub.pinned(BENCHMARKS[name].repo, revision, "dataset")

    @cached_property
    def questions(self) -> Node:
        """The questions to learn from and be tested on."""
        return self.questions_of(self.config.data)

    def model(self, source: ModelSource, variant: str = "") -> Node:
        """Return a model from scratch or from elsewhere."""
        paths: dict[str, str] = {}
        match source:
            case ScratchModel():
                inputs = {"questions": self.questions}
                return self.node("base-model", inputs, variant, scratch=source)
            case HubModel():
                commit = hf_hub.pinned(source.repo, source.revision, "model")
                imported = f"hub:{source.repo}@{commit}"
            case ArtifactModel():
                imported = f"artifact:{source.name}"
            case FolderModel():
                imported = f"folder:{source_digest(source)}"
                paths["source"] = str(Path(source.path).absolute())
            case PackageModel():
                imported = f"package:{source_digest(source)}"
                paths["source"] = source.package
        return self.node("base-model", {}, variant, paths=paths, imported=imported, format=None)

    @cached_property
    def base(self) -> Node:
        """The model that the teacher starts from."""
        return self.model(self.config.base_model)

    def reward_student(self, seed: int) -> Node:
        """Return the frozen student whose log-probs are the reward."""
        source = self.config.reward_student
        student = self.model(source, "reward-student") if source else self.base
        if not self.config.reward_student_sft:
            return student
        return self.student_sft("reward-student" if source else "dataset", seed, base=student)

    @cached_property
    def student_base(self) -> Node:
        """The model that distilled students start from."""
        source = self.config.student
        return self.model(source, "student") if source else self.base

    # ------------------------------------------------------------ teacher
    def teacher_sft(self, seed: int) -> Node:
        """Return the warmed-up teacher, or the base model if there is no warm-up."""
        sft = self.config.teacher_sft
        if sft.traces == "none":
            return self.base
        source = self.questions
        if sft.traces != "dataset":
            source = self.imported_traces("warm-up", sft.traces, "teacher_sft.traces")
        inputs = {"model": self.base, "questions": source}
        return self.node("teacher-sft", inputs, seed=seed, sft=_only(SFTConfig, sft))

    def teacher_grpo(self, seed: int, reward: RewardSpec | None = None, variant: str = "") -> Node:
        """Return the Reinforcement-Learned Teacher of the config's reward, or of another one."""
        inputs = {
            "model": self.teacher_sft(seed),
            "student": self.reward_student(seed),
            "questions": self.questions,
        }
        return self.node(
            "teacher-grpo", inputs, variant, seed,
            grpo=self.config.teacher_grpo, reward=reward or self.config.reward,
        )  # fmt: skip

    # ------------------------------------------------------------ traces
    def traces(
        self,
        teacher: Node,
        variant: str,
        seed: int,
        split: Literal["train", "validation"] = "train",
        context: Literal["teacher", "student"] = "teacher",
        questions: Node | None = None,
        **sampling: Any,
    ) -> Node:
        """Return a teacher's explanations, or a solver's thoughts (context `student`); `sampling`
        changes fields of `trace_generation`."""
        common = _only(GenerationConfig, self.config.trace_generation)
        inputs = {"teacher": teacher, "questions": questions or self.questions}
        return self.node(
            "trace-generation", inputs, variant, seed,
            sampling=common.replaced(**sampling), split=split, context=context,
        )  # fmt: skip

    def endpoint_traces(self, variant: str, seed: int) -> Node:
        """Return explanations by an LLM; `endpoint_teacher` of the config names it."""
        inputs = {"questions": self.questions, "tokenizer": self.base}
        teacher = self.config.endpoint_teacher
        return self.node("endpoint-generation", inputs, variant, seed, teacher=teacher)

    def refined_traces(self, traces: Node, variant: str, seed: int) -> Node:
        """Return traces that an LLM rewrote; `trace_refinement` of the config names it."""
        inputs = {"traces": traces, "questions": self.questions, "tokenizer": self.base}
        refinement = self.config.trace_refinement
        return self.node("trace-refinement", inputs, variant, seed, refinement=refinement)

    def imported_traces(self, name: str, path: str, field: str = "") -> Node:
        """Return the traces of a file, which `field` of the config names, else `imports.traces`."""
        digest = file_digest(path, field or f"imports.traces.{name}")
        return self.node(
            "trace-import", {"tokenizer": self.base}, name,
            paths={"source": str(Path(path).absolute())},
            name=name, digest=digest, max_dropped=self.config.data.max_dropped,
        )  # fmt: skip

    @cached_property
    def dataset_traces(self) -> Node:
        """The data set's own traces as a table of traces."""
        inputs = {"tokenizer": self.base, "questions": self.questions}
        return self.node("trace-import", inputs, "dataset", name="dataset", digest=None)

    def imported_scores(self, name: str, path: str) -> Node:
        digest = file_digest(path, f"imports.scores.{name}")
        paths = {"source": str(Path(path).absolute())}
        return self.node("score-import", {}, name, paths=paths, name=name, digest=digest)

    def scores(
        self,
        traces: Node,
        teacher: Node | None,
        variant: str,
        seed: int,
        kl: KLEstimator | None = None,
        student: Node | None = None,
    ) -> Node:
        """Return rewards and ranks of traces; of a teacher whose model nobody has (None), what the
        student alone gives. The KL estimator is `kl`, else `reward.kl` for the teacher's own traces
        and `trace_scoring.off_policy_kl` for others. `student`: by default the reward student."""
        inputs = {
            "traces": traces,
            "questions": self.questions,
            **({"teacher": teacher} if teacher else {}),
            "student": student or self.reward_student(seed),
        }
        scoring = self.config.trace_scoring.replaced(off_policy_kl="full")
        node = self.node(
            "trace-scoring", inputs, variant, seed, reward=self.config.reward, scoring=scoring
        )
        if teacher is None:
            return node
        writer = traces.inputs["teacher"].key if "teacher" in traces.inputs else None
        reason = off_policy(traces.stage.name, traces.config.model_dump(), writer, teacher.key)
        return replace(node, config=with_estimator(node.config, self.config, reason, kl))

    def selected_traces(self, traces: Node, scores: Node, variant: str, seed: int) -> Node:
        """Return the traces from which the student of the scores learns most, as `trace_selection`
        says."""
        inputs = {
            "traces": traces,
            "scores": scores,
            "questions": self.questions,
            "student": scores.inputs["student"],
        }
        selection = self.config.trace_selection
        return self.node("trace-selection", inputs, variant, seed, selection=selection)

    # ------------------------------------------------------------ students
    def student_sft(
        self,
        variant: str,
        seed: int,
        traces: Node | None = None,
        scores: Node | None = None,
        *,
        base: Node | None = None,
        recipe: StudentSFTConfig | None = None,
        questions: Node | None = None,
        empty_thought: bool = False,
        **choice: Any,
    ) -> Node:
        """Return a student of `traces`, of the data set's own traces (None), or of the solutions
        alone (`empty_thought`). `base`, `recipe` and `questions` replace the config's; `choice`
        (rank, order, fits, token_matched) picks traces by `scores`."""
        recipe = recipe or self.config.student_sft
        inputs = {"model": base or self.student_base, "questions": questions or self.questions}
        if traces:
            inputs["traces"] = traces
            if "questions" in traces.stage.tables and "questions" not in traces.inputs:
                inputs["questions"] = traces
        if scores:
            inputs["scores"] = scores
        return self.node(
            "student-sft", inputs, variant, seed,
            sft=_only(SFTConfig, recipe), n_questions=recipe.n_questions,
            traces="none" if empty_thought else "traces" if traces else "dataset",
            **{"rank": None} | choice,
        )  # fmt: skip

    def dataset_student(self, variant: str, seed: int, **options: Any) -> Node:
        """Return a student of the data set's own traces. Raises NoTraces where a file has none."""
        self.require_traces()
        return self.student_sft(variant, seed, **options)

    def require_traces(self) -> None:
        """Raises NoTraces where a file has none."""
        if not self._has_traces:
            raise NoTraces("the data has no traces of its own (data.fields.trace, data.split_at)")

    @cached_property
    def _has_traces(self) -> bool:
        """Whether the data has traces, by the first rows of a file; of other sources it may."""
        data = self.config.data
        return not is_file(data.source) or any(row.trace for row in check_file(data)[0].rows)

    def rlt_traces(self, seed: int) -> tuple[Node, Node]:
        """Return the traces of the Reinforcement-Learned Teacher, and their scores."""
        teacher = self.teacher_grpo(seed)
        traces = self.traces(teacher, "rlt", seed)
        return traces, self.scores(traces, teacher, "rlt", seed)

    def rlt_student(
        self, seed: int, variant: str = "rlt", recipe: StudentSFTConfig | None = None
    ) -> Node:
        """Return a student of the RLT's traces; of the best by reward if questions have several."""
        traces, scores = self.rlt_traces(seed)
        if self.config.trace_generation.n == 1:
            return self.student_sft(variant, seed, traces, recipe=recipe)
        return self.student_sft(variant, seed, traces, scores, rank=1, recipe=recipe)

    def student_grpo(
        self, student: Node, variant: str, seed: int, questions: Node | None = None
    ) -> Node:
        """Return RL of a student on answer correctness, as `student_grpo` of the config says."""
        if questions is None:
            data = self.config.rl_data
            questions = self.questions_of(data, "rl") if data else self.questions
        inputs = {"model": student, "questions": questions}
        return self.node("student-grpo", inputs, variant, seed, grpo=self.config.student_grpo)

    # ------------------------------------------------------------ measurement
    def evaluation(
        self,
        model: Node,
        variant: str,
        seed: int | None,
        countdown: Node | None = None,
        format: str | None = None,
        **changes: Any,
    ) -> Node:
        """Return benchmarks of a model; `changes` are fields of `evaluation`. `countdown`: the data
        set whose test problems the task `countdown` asks. `format`: the prompt format that the user
        named for this model."""
        own = load_format(format) if format else self.format
        evaluation = self.config.evaluation.replaced(**changes)
        samples = {name: n for name, n in evaluation.samples.items() if name in evaluation.tasks}
        evaluation = evaluation.replaced(samples=samples, revisions={})
        inputs = {"model": model, "questions": self.questions}
        if countdown:
            inputs["countdown"] = countdown
        paths: dict[str, str] = {}
        own_benchmarks = self._own_benchmarks(evaluation.tasks, paths)
        commits = {n: self._benchmark_commit(n) for n in evaluation.tasks if n in BENCHMARKS}
        return self.node(
            "evaluation", inputs, variant, seed, paths,
            evaluation=evaluation, benchmarks=commits, own_benchmarks=own_benchmarks,
            format=own, format_named=own != self.format,
        )  # fmt: skip

    def rank_statistics(
        self, ranked_by: RankedSet, scores: Mapping[int, Node], ranked: Mapping[str, Node]
    ) -> Node:
        """Return statistics over `scores` by seed and evaluations named `rank-R@seed`."""
        ablation = self.config.rank_ablation
        assert ablation
        named = {f"scores@{seed}": node for seed, node in scores.items()}
        return self.node(
            "rank-statistics", named | dict(ranked), ranked_by,
            ranks=ablation.ranks, seeds=self.config.seeds, resamples=ablation.resamples,
            task=self.config.evaluation.tasks[0], ranked_by=ranked_by,
        )  # fmt: skip

    def report(self, title: str, parts: list[Node], **shown: Any) -> Node:
        """Return the report over an experiment's nodes; `shown` are fields of `ReportConfig`."""
        variant = "" if title == "full-pipeline" else title
        return self.node(
            "report", by_name(parts), variant, profile=self.config.profile, title=title, **shown
        )
