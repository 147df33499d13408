"""Traces that an LLM behind an endpoint writes: from its answers to tables.

Every answer is committed when it arrives, so a later attempt asks only for what is missing.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_core.budget import RESPONSES, Allowance, exhausted, tokens_of
from rlt_core.config.endpoint import ChatConfig, Endpoint
from rlt_core.data.imports import text_columns
from rlt_core.data.rawrow import dropped_row
from rlt_core.endpoint import ChatAnswer, ChatRequest, ask_all
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import write_tables
from rlt_core.store import Workspace

FILE = "answers.jsonl"
MOST = 8
"""Requests that an endpoint may reject if it has answered none."""
REASONS = ("refused", "empty", "cut", "tagged", "rejected")
"""Why a trace has no usable answer."""

Row = dict[str, Any]


def fault_of(answer: ChatAnswer, format: PromptFormat) -> tuple[str, str] | None:
    """Return why an answer cannot be used (one of REASONS) and a detail; None if it can be."""
    if answer.rejected is not None:
        return "rejected", answer.rejected
    if answer.refusal or answer.finish_reason == "content_filter":
        return "refused", answer.refusal or "content filter"
    if answer.finish_reason == "length":
        return "cut", "max_tokens reached"
    if not answer.text.strip():
        return "empty", f"finish reason {answer.finish_reason}"
    found = [tag for tag in format.tags if tag in answer.text]
    return ("tagged", f"it contains {found[0]}") if found else None


@dataclass(frozen=True)
class WantedTrace:
    """A trace that an LLM is to write."""

    row: Row
    """Its columns of `traces` that do not depend on the answer."""
    question: Row
    request: ChatRequest
    hash: str
    """Of the request; traces with the same one share an answer."""


class WantedTraces:
    """The traces of one artifact, and how the answers to their requests become tables."""

    def __init__(
        self, stage: str, config: ChatConfig, renderer: Renderer, traces: Sequence[WantedTrace]
    ) -> None:
        if not traces:
            raise UserError(f"{stage}: there is no trace to be written; its input is empty")
        self.stage, self.config, self.renderer, self.traces = stage, config, renderer, traces
        self.by_hash = {trace.hash: trace for trace in traces}
        self.sharing = Counter(trace.hash for trace in traces)
        self.answers: dict[str, ChatAnswer] = {}
        self.used, self.unusable = Counter(usage([])), 0

    def write(
        self,
        work: Workspace,
        endpoint: Endpoint,
        out: Path,
        progress: Progress,
        allowance: Allowance | None = None,
    ) -> dict[str, float]:
        """Get an answer to each request and write the tables `traces` and `dropped`; return the
        stage's metrics.

        Raises UserError as soon as more traces than `max_dropped` have no usable answer, or the
        budget is used up.
        """
        asked = self._ask(work, endpoint, progress, allowance)
        kept, dropped = [], []
        for number, trace in enumerate(self.traces, 1):
            if fault := fault_of(self.answers[trace.hash], self.renderer.format):
                detail = f"{trace.row['trace_id']}: {fault[1]}"
                dropped.append(dropped_row(number, fault[0], detail, trace.question["question"]))
            else:
                kept.append(trace)
        texts = ((trace, self.answers[trace.hash].text.strip()) for trace in kept)
        rows = (
            trace.row | text_columns(trace.question, text, self.renderer) for trace, text in texts
        )
        counted = write_tables(out, traces=rows, dropped=dropped)
        reasons = Counter(row["reason"] for row in dropped)
        cost = endpoint.cost(self.used["prompt_tokens"], self.used["completion_tokens"])
        return {
            **counted,
            **{reason: reasons[reason] for reason in REASONS},
            "requests": len(self.by_hash),
            "asked_now": asked,
            **self.used,
            **({} if cost is None else {"cost": cost}),
        }

    def _ask(
        self, work: Workspace, endpoint: Endpoint, progress: Progress, allowance: Allowance | None
    ) -> int:
        """Get the answers that earlier attempts have not saved; return how many these are. Answers
        to rejected requests are not saved: a later attempt asks again."""

        def keep(new: list[ChatAnswer]) -> None:
            if lasting := [answer for answer in new if answer.rejected is None]:
                name = lasting[0].request[:16]  # a request is answered once
                lines = "".join(answer.model_dump_json() + "\n" for answer in lasting)
                (work.begin(RESPONSES, name) / FILE).write_text(lines)
                work.commit(RESPONSES, name, answers=len(lasting), **usage(lasting))
            self._add(new)
            progress.report(len(self.answers), len(self.by_hash), {})

        def spent() -> str | None:
            if allowance and self.used["without_usage"]:
                raise UserError(
                    f"{endpoint.base_url} does not say how many tokens an answer took, so that no "
                    "budget can be kept: leave out resources.budget_tokens and "
                    "resources.budget_usd (n_questions limits the requests)"
                )
            return allowance.spent(tokens_of(self.used)) if allowance else None

        for name in work.parts(RESPONSES):
            lines = (work.path(RESPONSES, name) / FILE).read_bytes().splitlines()
            self._add([ChatAnswer.model_validate_json(line) for line in lines])
        asked = {
            hash: trace.request for hash, trace in self.by_hash.items() if hash not in self.answers
        }
        if asked:
            ask_all(asked, endpoint, keep, progress, lambda: spent() is None)
        if unanswered := len(self.by_hash.keys() - self.answers.keys()):
            total = len(self.by_hash)
            raise exhausted(str(spent()), total - unanswered, total, "requests")
        return len(asked)

    def _add(self, new: Collection[ChatAnswer]) -> None:
        """Count answers. Raises UserError if too many traces, or all, have no usable one."""
        self.used.update(usage(new))
        for answer in new:
            self.answers[answer.request] = answer
            if fault := fault_of(answer, self.renderer.format):
                self.unusable += self.sharing[answer.request]
                self._require_few(answer, fault)

    def _require_few(self, last: ChatAnswer, fault: tuple[str, str]) -> None:
        rejected = all(answer.rejected is not None for answer in self.answers.values())
        if (
            self.unusable > self.config.max_dropped * len(self.traces)
            or self.unusable == len(self.traces)
            or (rejected and len(self.answers) >= MOST)
        ):
            raise UserError(
                f"{self.stage}: {self.unusable} of {len(self.traces)} traces have no usable answer "
                f"(max_dropped = {self.config.max_dropped:g}); the last: {fault[0]}, "
                f"{self.by_hash[last.request].row['trace_id']}: {fault[1]}"
            )


def usage(answers: Collection[ChatAnswer]) -> dict[str, int]:
    """Return the tokens that answers took, and how many of the answers do not say so."""
    answered = [answer for answer in answers if answer.rejected is None]
    return {
        "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in answered),
        "completion_tokens": sum(answer.completion_tokens or 0 for answer in answered),
        "without_usage": sum(answer.prompt_tokens is None for answer in answered),
    }
