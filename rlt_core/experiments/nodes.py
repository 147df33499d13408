"""From the config to nodes: one function a stage, so that equal work has equal keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlt_core import hf_hub
from rlt_core.config import (
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
from rlt_core.data.sources import GENERATED, data_digest
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import BENCHMARKS, require_known
from rlt_core.graph import Node
from rlt_core.hf_hub import source_digest
from rlt_core.prompts.format import PromptFormat, load_format
from rlt_core.stages import (
    STAGES,
    BaseModelConfig,
    DatasetPrepConfig,
    EvaluationStageConfig,
    RankStatisticsConfig,
    ReportConfig,
    ScoreImportConfig,
    StudentGRPOStageConfig,
    StudentSFTStageConfig,
    TeacherGRPOStageConfig,
    TeacherSFTStageConfig,
    TraceGenerationConfig,
    TraceImportConfig,
    TraceRefinementConfig,
    TraceScoringConfig,
)
from rlt_core.store.files import sha256_of

MAX_PATH = 256
"""Characters of a text that may be a file's path."""


def _file_digest(path: str, field: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"{field}={path!r}: no such file (paths start at {Path.cwd()})")
    return f"{sha256_of(Path(path))}{Path(path).suffix}"


def _text_or_file(given: str, field: str) -> str:
    """A text, or what a file says. One word is a path."""
    path = Path(given)
    if len(given) < MAX_PATH and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    if given and len(given.split()) < 2:
        raise UserError(f"{field}={given!r}: no such file (paths start at {Path.cwd()})")
    return given


def _only(base: type[Frozen], value: Frozen) -> Any:
    """The fields of a base class, without those that only shape the graph."""
    return base.model_validate({name: getattr(value, name) for name in base.model_fields})


def off_policy(stage: str, config: Mapping[str, Any], writer: str | None, teacher: str) -> str:
    """Why traces are not samples of a teacher; empty: they are. `stage`, `config` and `writer`
    (key of the model) tell how the traces were made."""
    if stage == "trace-refinement":
        return "refined"
    if stage == "trace-import":
        return "imported" if config["digest"] else "the data set's own"
    if config.get("context") == "student":
        return "written without the solution"
    return "" if writer == teacher else "written by another model"


def with_estimator(scoring: TraceScoringConfig, config: Config, reason: str) -> TraceScoringConfig:
    """The scoring of traces that are off-policy for this reason, or on-policy where it is empty."""
    reward = config.reward
    if reason:
        reward = reward.model_copy(update={"kl": config.trace_scoring.off_policy_kl})
    return scoring.model_copy(update={"reward": reward, "off_policy": reason})


class Nodes:
    """Builds the nodes of one config."""

    def __init__(self, config: Config) -> None:
        require_known(config.evaluation.tasks)
        self.config = config
        self.format = self._configured_format()

    def _configured_format(self) -> PromptFormat:
        """The prompt format with the system prompts that the config names."""
        changed: dict[str, str | None] = {}
        if (teacher := self.config.teacher_system) is not None:
            changed["teacher_system"] = _text_or_file(teacher, "teacher_system")
        if self.config.data.fields.system:
            changed["student_system"] = None
        return load_format(self.config.prompt_format).model_copy(update=changed)

    def _node(
        self,
        stage: str,
        config: Frozen,
        inputs: Mapping[str, Node],
        variant: str = "",
        seed: int | None = None,
        paths: Mapping[str, str] | None = None,
    ) -> Node:
        inputs, format = dict(inputs), getattr(config, "format", None)
        if format and format.student_system is None and stage != "dataset-prep":
            inputs["system"] = self.questions
        return Node(STAGES[stage], config, inputs, variant, seed, dict(paths or {}))

    # ------------------------------------------------------------ data and models
    def questions_of(self, data: DataConfig, variant: str = "") -> Node:
        """The questions of a data set; what another than `config.data` shares with the test
        questions of that one counts as overlap, too."""
        paths = {}
        if data.source.startswith("hub:"):
            commit = hf_hub.pinned(data.source.removeprefix("hub:"), data.revision, "dataset")
            identified = data.model_copy(update={"revision": commit})
        elif data.source in GENERATED:
            identified = data
        else:
            paths["source"] = str(Path(data.source).absolute())
            identified = data.model_copy(update={"source": data_digest(data)})
        base = self.config.base_model
        inputs = {} if isinstance(base, ScratchModel) else {"tokenizer": self.model(base)}
        if data != self.config.data and self.config.data.n_test:
            inputs["tested"] = self.questions
        evaluated = {
            name: self._benchmark_commit(name) if name in BENCHMARKS else ""
            for name in sorted(self.config.evaluation.tasks)
            if name != "test"
        }
        config = DatasetPrepConfig(data=identified, format=self.format, evaluated=evaluated)
        return self._node("dataset-prep", config, inputs, variant, paths=paths)

    def _benchmark_commit(self, name: str) -> str:
        """What its data set on the hub is known by."""
        revision = self.config.evaluation.revisions.get(name)
        return hf_hub.pinned(BENCHMARKS[name].repo, revision, "dataset")

    @cached_property
    def questions(self) -> Node:
        """The questions to learn from and be tested on."""
        return self.questions_of(self.config.data)

    @cached_property
    def rl_questions(self) -> Node:
        """The questions of the RL cold-start."""
        data = self.config.rl_data
        return self.questions_of(data, "rl") if data else self.questions

    def model(self, source: ModelSource, variant: str = "") -> Node:
        """A model from scratch or from outside."""
        paths: dict[str, str] = {}
        match source:
            case ScratchModel():
                config = BaseModelConfig(scratch=source, format=self.format)
                return self._node("base-model", config, {"questions": self.questions}, variant)
            case HubModel():
                commit = hf_hub.pinned(source.repo, source.revision, "model")
                imported = f"hub:{source.repo}@{commit}"
            case FolderModel():
                imported = f"folder:{source_digest(source)}"
                paths["source"] = str(Path(source.path).absolute())
            case PackageModel():
                imported = f"package:{source_digest(source)}"
                paths["source"] = source.package
        config = BaseModelConfig(imported=imported)
        return self._node("base-model", config, {}, variant, paths=paths)

    @cached_property
    def base(self) -> Node:
        """What the teacher starts from."""
        return self.model(self.config.base_model)

    @cached_property
    def reward_student(self) -> Node:
        """The frozen student whose log-probs are the reward."""
        source = self.config.reward_student
        return self.model(source, "reward-student") if source else self.base

    @cached_property
    def student_base(self) -> Node:
        """What distilled students start from."""
        source = self.config.student
        return self.model(source, "student") if source else self.base

    # ------------------------------------------------------------ teacher
    def teacher_sft(self, seed: int) -> Node:
        """The warmed-up teacher; the base model when there is no warm-up."""
        sft = self.config.teacher_sft
        if sft.traces == "none":
            return self.base
        source = self.questions
        if sft.traces != "dataset":
            source = self.imported_traces("warm-up", sft.traces, "teacher_sft.traces")
        config = TeacherSFTStageConfig(sft=_only(SFTConfig, sft), format=self.format, seed=seed)
        return self._node(
            "teacher-sft", config, {"model": self.base, "questions": source}, "", seed
        )

    def teacher_grpo(self, seed: int, reward: RewardSpec | None = None, variant: str = "") -> Node:
        """The Reinforcement-Learned Teacher; of another reward than the config's, where given."""
        config = TeacherGRPOStageConfig(
            grpo=self.config.teacher_grpo,
            reward=reward or self.config.reward,
            format=self.format,
            seed=seed,
        )
        inputs = {
            "model": self.teacher_sft(seed),
            "student": self.reward_student,
            "questions": self.questions,
        }
        return self._node("teacher-grpo", config, inputs, variant, seed)

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
        """A teacher's explanations, or with the `student` context a solver's thoughts; `sampling`
        changes fields of `trace_generation`."""
        common = _only(GenerationConfig, self.config.trace_generation)
        config = TraceGenerationConfig(
            sampling=common.model_copy(update=sampling),
            split=split,
            context=context,
            format=self.format,
            seed=seed,
        )
        inputs = {"teacher": teacher, "questions": questions or self.questions}
        return self._node("trace-generation", config, inputs, variant, seed)

    def refined_traces(self, traces: Node, variant: str, seed: int) -> Node:
        """Traces that an LLM wrote anew. Raises ValueError where the config names none."""
        refinement = self.config.trace_refinement
        if refinement is None:
            raise ValueError("config.trace_refinement is empty")
        config = TraceRefinementConfig(refinement=refinement, format=self.format)
        inputs = {"traces": traces, "questions": self.questions, "tokenizer": self.base}
        return self._node("trace-refinement", config, inputs, variant, seed)

    def imported_traces(self, name: str, path: str, field: str = "") -> Node:
        """Traces that others wrote; `field` of the config names the file, else `imports.traces`."""
        digest = _file_digest(path, field or f"imports.traces.{name}")
        config = TraceImportConfig(
            name=name,
            digest=digest,
            max_dropped=self.config.data.max_dropped,
            format=self.format,
        )
        inputs = {"tokenizer": self.base}
        paths = {"source": str(Path(path).absolute())}
        return self._node("trace-import", config, inputs, name, paths=paths)

    @cached_property
    def dataset_traces(self) -> Node:
        """The data set's own traces as a table of traces."""
        config = TraceImportConfig(name="dataset", digest=None, format=self.format)
        inputs = {"tokenizer": self.base, "questions": self.questions}
        return self._node("trace-import", config, inputs, "dataset")

    def imported_scores(self, name: str, path: str) -> Node:
        """Rewards that others computed."""
        config = ScoreImportConfig(name=name, digest=_file_digest(path, f"imports.scores.{name}"))
        paths = {"source": str(Path(path).absolute())}
        return self._node("score-import", config, {}, name, paths=paths)

    def scores(
        self,
        traces: Node,
        teacher: Node,
        variant: str,
        seed: int,
        kl: KLEstimator | None = None,
    ) -> Node:
        """Rewards and ranks of traces. The KL estimator is `kl`, or else `reward.kl` for the
        teacher's own traces and `trace_scoring.off_policy_kl` for others."""
        config = TraceScoringConfig(
            reward=self.config.reward,
            scoring=self.config.trace_scoring.model_copy(update={"off_policy_kl": "full"}),
            format=self.format,
            seed=seed,
        )
        writer = traces.inputs["teacher"].key if "teacher" in traces.inputs else None
        made = traces.config.model_dump()
        reason = off_policy(traces.stage.name, made, writer, teacher.key)
        config = with_estimator(config, self.config, reason)
        if kl:
            changed = config.reward.model_copy(update={"kl": kl})
            config = config.model_copy(update={"reward": changed})
        inputs = {
            "traces": traces,
            "questions": self.questions,
            "teacher": teacher,
            "student": self.reward_student,
        }
        return self._node("trace-scoring", config, inputs, variant, seed)

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
        """A student of the data set's own traces (no `traces`), of generated or imported ones, or
        `empty_thought`: of the solutions alone. `base`, `recipe` and `questions` stand for the
        config's; `choice` (rank, order, fits, token_matched) picks traces by `scores`."""
        recipe = recipe or self.config.student_sft
        config = StudentSFTStageConfig(
            sft=_only(SFTConfig, recipe),
            traces="none" if empty_thought else "traces" if traces else "dataset",
            n_questions=recipe.n_questions,
            format=self.format,
            seed=seed,
            **({"rank": None} | choice),
        )
        inputs = {"model": base or self.student_base, "questions": questions or self.questions}
        if traces:
            inputs["traces"] = traces
            if "questions" in traces.stage.tables and "questions" not in traces.inputs:
                inputs["questions"] = traces
        if scores:
            inputs["scores"] = scores
        return self._node("student-sft", config, inputs, variant, seed)

    def student_grpo(
        self, student: Node, variant: str, seed: int, questions: Node | None = None
    ) -> Node:
        """RL of a student on answer correctness. Raises ValueError where the config has none."""
        grpo = self.config.student_grpo
        if grpo is None:
            raise ValueError("config.student_grpo is empty")
        config = StudentGRPOStageConfig(grpo=grpo, format=self.format, seed=seed)
        inputs = {"model": student, "questions": questions or self.rl_questions}
        return self._node("student-grpo", config, inputs, variant, seed)

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
        """Benchmarks of a model; `changes` are fields of `evaluation`. `countdown`: the data set
        whose test problems the task `countdown` asks, in place of its own. `format`: the prompt
        format that the user named for this model."""
        own = load_format(format) if format else self.format
        evaluation = self.config.evaluation.model_copy(update=changes)
        samples = {name: n for name, n in evaluation.samples.items() if name in evaluation.tasks}
        evaluation = evaluation.model_copy(update={"samples": samples, "revisions": {}})
        config = EvaluationStageConfig(
            evaluation=evaluation,
            benchmarks={
                name: self._benchmark_commit(name)
                for name in evaluation.tasks
                if name in BENCHMARKS
            },
            format=own,
            format_named=own != self.format,
            seed=seed or 0,
        )
        inputs = {"model": model, "questions": self.questions}
        if countdown:
            inputs["countdown"] = countdown
        return self._node("evaluation", config, inputs, variant, seed)

    def rank_statistics(
        self, ranked_by: RankedSet, scores: Mapping[int, Node], ranked: Mapping[str, Node]
    ) -> Node:
        """Statistics over `scores` by seed and evaluations named `rank-R@seed`."""
        ablation = self.config.rank_ablation
        if ablation is None:
            raise ValueError("config.rank_ablation is empty")
        config = RankStatisticsConfig(
            ranks=ablation.ranks,
            seeds=self.config.seeds,
            resamples=ablation.resamples,
            task=self.config.evaluation.tasks[0],
            ranked_by=ranked_by,
        )
        named = {f"scores@{seed}": node for seed, node in scores.items()}
        return self._node("rank-statistics", config, named | dict(ranked), ranked_by)

    def report(self, title: str, parts: list[Node], **shown: Any) -> Node:
        """The report over all that an experiment made; `shown` are fields of `ReportConfig`."""
        config = ReportConfig(profile=self.config.profile, title=title, **shown)
        variant = "" if title == "full-pipeline" else title
        return self._node("report", config, {part.name: part for part in parts}, variant)
