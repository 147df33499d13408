"""Requests from traces, traces from answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlt_core.config.refinement import Endpoint, RefinementConfig
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.refinement.client import Answer, Request, ask_all, request_hash
from rlt_core.rows import write_rows
from rlt_core.store import Workspace

Row = dict[str, Any]
GROUP, FILE = "responses", "answers.jsonl"
REASONS = ("refused", "empty", "cut", "tagged", "rejected")
"""Why a trace has no usable answer."""


def request_of(config: RefinementConfig, question: Row, trace: Row) -> Request:
    """The chat completion that refines one trace."""
    texts = {"question": question["question"], "solution": question["solution"],
             "trace": trace["text"]}  # fmt: skip
    user = re.sub(r"\{(question|solution|trace)\}", lambda found: texts[found[1]], config.template)
    messages = [{"role": "user", "content": user}]
    if config.system:
        messages.insert(0, {"role": "system", "content": config.system})
    request: Request = {
        "model": config.model,
        "messages": messages,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
    }
    return request if config.seed is None else request | {"seed": config.seed}


def fault_of(answer: Answer, format: PromptFormat) -> tuple[str, str] | None:
    """Why an answer cannot be used: one of REASONS, and what was said; None if it can."""
    if answer.rejected is not None:
        return "rejected", answer.rejected
    if answer.refusal or answer.finish_reason == "content_filter":
        return "refused", answer.refusal or "content filter"
    if answer.finish_reason == "length":
        return "cut", "max_tokens reached"
    if not answer.text.strip():
        return "empty", f"finish reason {answer.finish_reason}"
    found = [tag for tag in format.tags if tag in answer.text]
    return ("tagged", f"{found[0]} stands in it") if found else None


def saved_answers(work: Workspace) -> dict[str, Answer]:
    """What earlier attempts were answered, by the hash of the request."""
    found = {}
    for name in work.parts(GROUP):
        for line in (work.path(GROUP, name) / FILE).read_text().splitlines():
            answer = Answer.model_validate_json(line)
            found[answer.request] = answer
    return found


def save(work: Workspace, answers: Sequence[Answer]) -> None:
    """Commit answers at once. A rejected request is asked again: it was not answered."""
    lasting = [answer for answer in answers if answer.rejected is None]
    if lasting:
        # A request is answered once, so its hash names the part.
        name = lasting[0].request[:16]
        lines = "".join(answer.model_dump_json() + "\n" for answer in lasting)
        (work.begin(GROUP, name) / FILE).write_text(lines)
        work.commit(GROUP, name)


class Refinement:
    """The traces of one artifact and what becomes of them."""

    def __init__(
        self,
        config: RefinementConfig,
        renderer: Renderer,
        traces: Sequence[Row],
        questions: Iterable[Row],
    ) -> None:
        by_id = {row["question_id"]: row for row in questions}
        lacking = [row["trace_id"] for row in traces if row["question_id"] not in by_id]
        if lacking or not traces:
            what = f"trace {lacking[0]} has no question" if lacking else "there is no trace"
            raise UserError(f"trace-refinement: {what}; give the traces' own questions as input")
        self.config, self.renderer, self.traces, self.questions = config, renderer, traces, by_id
        requests = [request_of(config, by_id[row["question_id"]], row) for row in traces]
        self.hashes = [request_hash(request) for request in requests]
        self.requests = dict(zip(self.hashes, requests, strict=True))

    def answers(
        self, work: Workspace, endpoint: Endpoint, progress: Progress
    ) -> tuple[dict[str, Answer], int]:
        """An answer to each request, by its hash, and how many were asked for now.

        Raises UserError as soon as more traces than `max_dropped` have no usable answer.
        """
        found = saved_answers(work)
        asked = [hash for hash in self.requests if hash not in found]

        def keep(answers: list[Answer]) -> None:
            save(work, answers)
            found.update({answer.request: answer for answer in answers})
            progress.report(len(found), len(self.requests), {})
            self.check(found)

        self.check(found)
        if asked:
            ask_all([self.requests[hash] for hash in asked], endpoint, keep, progress)
        return found, len(asked)

    def dropped(self, answers: Mapping[str, Answer]) -> list[Row]:
        """Rows of the table `dropped`: traces whose answers cannot be used."""
        rows = []
        for number, (trace, hash) in enumerate(zip(self.traces, self.hashes, strict=True), 1):
            answer = answers.get(hash)
            fault = answer and fault_of(answer, self.renderer.format)
            if fault:
                detail = f"{trace['trace_id']}: {fault[1]}"
                rows.append({"row": number, "question_id": trace["question_id"],
                             "reason": fault[0], "detail": detail})  # fmt: skip
        return rows

    def check(self, answers: Mapping[str, Answer]) -> None:
        """Raises UserError when too many traces are dropped."""
        rows = self.dropped(answers)
        if len(rows) > self.config.max_dropped * len(self.traces):
            last = rows[-1]
            raise UserError(
                f"trace-refinement: {len(rows)} of {len(self.traces)} traces have no usable "
                f"answer, more than max_dropped = {self.config.max_dropped:g}; the last: "
                f"{last['reason']}, {last['detail']}"
            )

    def write(self, answers: Mapping[str, Answer], out: Path) -> list[Row]:
        """Write the tables `traces` and `dropped`; returns the rows of `dropped`."""
        dropped = self.dropped(answers)
        left_out = {row["row"] for row in dropped}
        write_rows(out / "dropped.parquet", "dropped", dropped)
        kept = [
            self._refined(trace, answers[hash].text.strip())
            for number, (trace, hash) in enumerate(zip(self.traces, self.hashes, strict=True), 1)
            if number not in left_out
        ]
        write_rows(out / "traces.parquet", "traces", kept)
        return dropped

    def _refined(self, trace: Row, text: str) -> Row:
        question = self.questions[trace["question_id"]]
        target = self.renderer.teacher_sft_row(question["question"], question["solution"], text)
        prompt = len(self.renderer.teacher_prompt(question["question"], question["solution"]))
        completion_ids = target.input_ids[prompt:]
        return trace | {
            "teacher": self.config.name,
            "text": text,
            "token_ids": self.renderer.encode_block(text),
            "completion_ids": completion_ids,
            "closed": True,
            "finish_reason": "stop",
            "prompt_tokens": prompt,
            "completion_tokens": len(completion_ids),
        }


def usage(answers: Iterable[Answer], endpoint: Endpoint) -> dict[str, float]:
    """Tokens that all answers took, and their cost where both prices are given."""
    answered = [answer for answer in answers if answer.rejected is None]
    prompt = sum(answer.prompt_tokens or 0 for answer in answered)
    completion = sum(answer.completion_tokens or 0 for answer in answered)
    found: dict[str, float] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "without_usage": sum(answer.prompt_tokens is None for answer in answered),
    }
    if endpoint.prompt_price is not None and endpoint.completion_price is not None:
        price = prompt * endpoint.prompt_price + completion * endpoint.completion_price
        found["cost"] = price / 1e6
    return found
