"""One model on some tasks: completions, grades, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlt_core.config import EvaluationConfig, StageResources
from rlt_core.control import Control
from rlt_core.errors import UserError
from rlt_core.evaluation.budget import Forcer
from rlt_core.evaluation.completions import Completer, Request
from rlt_core.evaluation.scores import score_rows
from rlt_core.evaluation.tasks import EvalTask
from rlt_core.formats import PromptFormat
from rlt_core.grading import Grade, GradeItem, Grader
from rlt_core.rows import write_rows
from rlt_core.store import Workspace

if TYPE_CHECKING:
    from rlt_core.evaluation.adapter import Question, Response
    from rlt_core.prompts import Prompter

GRADES_A_CHECK = 256
"""Completions graded between two looks at whether the work should stop."""


def run_evaluation(
    model: Path,
    tasks: Sequence[EvalTask],
    config: EvaluationConfig,
    *,
    format: PromptFormat,
    key: str,
    seed: int,
    model_key: str,
    label: str | None = None,
    out: Path,
    work: Workspace,
    resources: StageResources,
    control: Control,
) -> dict[str, float]:
    """Evaluate a model folder; writes eval_samples and eval_scores to `out`.

    `label`: the model's name in eval_scores, its key when empty. Returns `{task}/{metric}` ->
    fraction and `{task}/ungraded` -> completions left out. Raises UserError for a config that
    cannot be scored; Stopped leaves the finished shards in `work`.
    """
    if max(config.pass_at, default=1) > config.n:
        raise UserError(
            f"evaluation.pass_at={max(config.pass_at)} needs at least as many completions a "
            f"question: raise evaluation.n (now {config.n})"
        )
    names = [task.name for task in tasks]
    if not names or len(set(names)) != len(names):
        raise UserError("evaluation.tasks must be a non-empty list of different names")
    from rlt_core.evaluation.adapter import run_tasks
    from rlt_core.generation import open_engine
    from rlt_core.models import load_tokenizer
    from rlt_core.prompts import Prompter

    prompter = Prompter(format, load_tokenizer(model))
    completer = Completer(
        open_engine=lambda: open_engine(model, config.dtype, resources),
        sampling=config,
        stop_ids=prompter.stop_ids,
        key=key,
        work=work,
        resources=resources,
        control=control,
        forcer=Forcer(prompter, config.budget, config.max_tokens) if config.budget else None,
    )
    tasks = [EvalTask(task.name, task.questions[: config.max_questions]) for task in tasks]
    with Grader(config.grading_timeout_s) as grader:
        examiner = _Examiner(tasks, prompter, completer, grader, control)
        results = run_tasks(tasks, examiner.answer, examiner.judge, out)
    constant = {"seed": seed, "model": model_key}
    samples = [
        {"task": task, **constant, **row}
        for task, questions in results.items()
        for question, response in questions
        for row in _sample_rows(question, response)
    ]
    scores = score_rows(samples, config.n, config.pass_at, label or model_key)
    write_rows(out / "eval_samples.parquet", "eval_samples", samples)
    write_rows(out / "eval_scores.parquet", "eval_scores", scores)
    return _metrics(scores)


@dataclass(frozen=True)
class _Examiner:
    """What lighteval calls: puts questions to the model and its solutions to the grader."""

    tasks: Sequence[EvalTask]
    prompter: Prompter
    completer: Completer
    grader: Grader
    control: Control

    def answer(self, asked: Sequence[tuple[str, Question]]) -> list[Response]:
        """Completions of (task, question) pairs. The shards follow the tasks' own order."""
        from rlt_core.evaluation.adapter import Response

        requests = {
            (task.name, row["question_id"]): Request(
                task.name, row["question_id"], self.prompter.student_prompt(row["question"])
            )
            for task in self.tasks
            for row in task.questions
        }
        completed = self.completer.complete(list(requests.values()))
        responses = []
        for task_name, question in asked:
            name = (task_name, question["question_id"])
            responses.append(
                Response(
                    input_tokens=requests[name].prompt_ids,
                    text=[self.prompter.decode(one.ids) for one in completed[name]],
                    output_tokens=[one.ids for one in completed[name]],
                    finish_reasons=[one.finish_reason for one in completed[name]],
                )
            )
        return responses

    def judge(
        self, questions: Sequence[Question], responses: Sequence[Response]
    ) -> list[list[Grade]]:
        """Grades of all completions."""
        items = [
            GradeItem(
                solution=given_solution(self.prompter, text),
                answer=question["answer"],
                grader=question["grader"],
                metadata=question["metadata"],
            )
            for question, response in zip(questions, responses, strict=True)
            for text in response.text
        ]
        grades: list[Grade] = []
        while len(grades) < len(items):
            self.control.check()
            grades += self.grader.grade_many(items[len(grades) : len(grades) + GRADES_A_CHECK])
        verdicts = iter(grades)
        return [[next(verdicts) for _ in response.text] for response in responses]


def given_solution(prompter: Prompter, text: str) -> str | None:
    """What a completion gives as its solution: the solution block; all of it if it uses no tag of
    the format (a model that never saw it); None if it began with the format and did not end."""
    solution = prompter.split_answer(text).solution
    if solution is not None:
        return solution
    tags = (prompter.format.thought_open, prompter.format.solution_open)
    return None if any(tag in text for tag in tags) else text


def _sample_rows(question: Question, response: Response) -> list[dict[str, Any]]:
    return [
        {
            "question_id": question["question_id"],
            "sample": sample,
            "question": question["question"],
            "completion": text,
            "extracted": grade.extracted,
            "answer": question["answer"],
            "outcome": grade.outcome,
            "finish_reason": finish_reason,
            "completion_tokens": len(ids),
        }
        for sample, (text, grade, finish_reason, ids) in enumerate(
            zip(
                response.text,
                response.grades,
                response.finish_reasons,
                response.output_tokens,
                strict=True,
            )
        )
    ]


def _metrics(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for row in scores:
        metrics[f"{row['task']}/ungraded"] = float(row["ungraded"])
        if row["value"] is not None:
            metrics[f"{row['task']}/{row['metric']}"] = row["value"]
    return metrics
