"""Traces written by an LLM behind an OpenAI-compatible endpoint: requests, answers, tables.

Requests run with bounded concurrency, at a limited rate, and are retried after transient faults.
Every answer is committed when it arrives, so a later attempt asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, ValidationError

from rlt_core.budget import Allowance, exhausted, tokens_of
from rlt_core.config.endpoint import ChatConfig, Endpoint
from rlt_core.data.imports import text_columns
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import write_tables
from rlt_core.secrets import masked
from rlt_core.store import Workspace

KEY = "RLT_REFINE_KEY"
"""Environment variable with the endpoint's API key; unset for a server that needs none."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""The wait between two tries doubles from the first to the second."""
LONGEST_RETRY_AFTER_S = 600.0
"""If the endpoint asks for a longer pause than this, the run ends and can be resumed later."""
GRACE_S = 5.0
"""Time that active requests have to finish when the work ends early; their answers are kept."""
POLL_S = 0.2
GROUP, FILE = "responses", "answers.jsonl"
CODES = (
    "content_filter", "content_policy_violation", "context_length_exceeded", "insufficient_quota",
    "invalid_request_error", "model_not_found", "rate_limit_exceeded", "server_error",
    "string_above_max_length", "unsupported_parameter", "unsupported_value",
)  # fmt: skip
"""Codes of an endpoint's errors that are shown. Of the rest of its answer nothing is: it may quote
the key in any spelling."""
FIXES = {
    "seed": " (it refuses `seed`: null sends none)",
    "top_p": " (it refuses `top_p`: 1 is not sent)",
}
"""What helps where an error names this field of a request."""
REASONS = ("refused", "empty", "cut", "tagged", "rejected")
"""Why a trace has no usable answer."""

Row = dict[str, Any]
ChatRequest = dict[str, Any]
"""Arguments of a chat completion."""


class ChatAnswer(BaseModel):
    """The endpoint's answer to one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: str
    """Hash of the request."""
    text: str = ""
    finish_reason: str | None = None
    refusal: str | None = None
    rejected: str | None = None
    """Status and code of an answer that refuses the request itself (400, 413, 422)."""
    prompt_tokens: int | None = None
    """None if the endpoint reports no usage."""
    completion_tokens: int | None = None


def chat_request(config: ChatConfig, seed: int | None, **texts: str) -> ChatRequest:
    """Return a chat completion; `texts` by their places in the template."""
    place = re.compile(rf"\{{({'|'.join(texts)})\}}")
    user = place.sub(lambda found: texts[found[1]], config.template)
    messages = [{"role": "user", "content": user}]
    if config.system:
        messages.insert(0, {"role": "system", "content": config.system})
    request: ChatRequest = {
        "model": config.model,
        "messages": messages,
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
    }
    return request if seed is None else request | {"seed": seed}


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the hash of a request; equal requests have equal hashes."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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


def saved_answers(work: Workspace) -> dict[str, ChatAnswer]:
    """Return the answers that earlier attempts got, by the hash of the request."""
    found = {}
    for name in work.parts(GROUP):
        text = (work.path(GROUP, name) / FILE).read_text()
        for line in text.split("\n")[:-1]:  # not splitlines: JSON keeps U+2028 as it is
            answer = ChatAnswer.model_validate_json(line)
            found[answer.request] = answer
    return found


def save(work: Workspace, answers: Sequence[ChatAnswer]) -> None:
    """Commit answers. Those to rejected requests are not saved: a later attempt asks again."""
    lasting = [answer for answer in answers if answer.rejected is None]
    if lasting:
        # A request is answered once, so its hash names the part.
        name = lasting[0].request[:16]
        lines = "".join(answer.model_dump_json() + "\n" for answer in lasting)
        (work.begin(GROUP, name) / FILE).write_text(lines)
        work.commit(GROUP, name, **usage(lasting))


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
        dropped = self._dropped()
        left_out = {row["row"] for row in dropped}
        kept = (
            self._trace(trace, self.answers[trace.hash].text.strip())
            for number, trace in enumerate(self.traces, 1)
            if number not in left_out
        )
        counted = write_tables(out, traces=kept, dropped=dropped)
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
        """Get the answers that earlier attempts have not saved; return how many these are."""

        def keep(new: list[ChatAnswer]) -> None:
            save(work, new)
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

        self._add(saved_answers(work).values())
        asked = {
            hash: trace.request for hash, trace in self.by_hash.items() if hash not in self.answers
        }
        if asked:
            ask_all(asked, endpoint, keep, progress, lambda: spent() is None)
        if unanswered := len(self.by_hash) - len(self.by_hash.keys() & self.answers.keys()):
            total = len(self.by_hash)
            raise exhausted(str(spent()), total - unanswered, total, "requests")
        return len(asked)

    def _add(self, new: Collection[ChatAnswer]) -> None:
        """Count answers. Raises UserError if too many traces have no usable one."""
        self.used.update(usage(new))
        for answer in new:
            self.answers[answer.request] = answer
            if fault := fault_of(answer, self.renderer.format):
                self.unusable += self.sharing[answer.request]
                self._require_few(answer, fault)

    def _require_few(self, last: ChatAnswer, fault: tuple[str, str]) -> None:
        if self.unusable > self.config.max_dropped * len(self.traces):
            raise UserError(
                f"{self.stage}: {self.unusable} of {len(self.traces)} traces have no usable "
                f"answer, more than max_dropped = {self.config.max_dropped:g}; the last: "
                f"{fault[0]}, {self.by_hash[last.request].row['trace_id']}: {fault[1]}"
            )

    def _dropped(self) -> list[Row]:
        """Return rows of the table `dropped`: traces whose answers cannot be used."""
        return [
            {
                "row": number,
                "question_id": trace.row["question_id"],
                "reason": fault[0],
                "detail": f"{trace.row['trace_id']}: {fault[1]}",
            }
            for number, trace in enumerate(self.traces, 1)
            if (fault := fault_of(self.answers[trace.hash], self.renderer.format))
        ]

    def _trace(self, trace: WantedTrace, text: str) -> Row:
        return trace.row | text_columns(trace.question, text, self.renderer)


def usage(answers: Collection[ChatAnswer]) -> dict[str, int]:
    """Return the tokens that answers took, and how many of the answers do not say so."""
    answered = [answer for answer in answers if answer.rejected is None]
    return {
        "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in answered),
        "completion_tokens": sum(answer.completion_tokens or 0 for answer in answered),
        "without_usage": sum(answer.prompt_tokens is None for answer in answered),
    }


# ---------------------------------------------------------------- the endpoint


def ask_all(
    requests: Mapping[str, ChatRequest],
    endpoint: Endpoint,
    keep: Callable[[list[ChatAnswer]], None],
    progress: Progress,
    allowed: Callable[[], bool] = lambda: True,
) -> None:
    """Send requests (by their hashes) while it is allowed, wait for their answers and pass each
    batch of them to `keep`.

    Raises UserError for an endpoint that is unreachable, refuses the key, does not know the model
    or keeps failing; whatever `keep` raises; Stopped. `keep` has had all answers until then.
    """
    asyncio.run(_Client(endpoint, keep, progress, allowed).run(requests))


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY}: contains characters that no API key has; set it again")
    return key or "none"


class _Client:
    """The state of one call of `ask_all`."""

    def __init__(
        self,
        endpoint: Endpoint,
        keep: Callable[[list[ChatAnswer]], None],
        progress: Progress,
        allowed: Callable[[], bool],
    ) -> None:
        self.endpoint, self.keep, self.progress, self.allowed = endpoint, keep, progress, allowed
        self.key = _key()
        self.next_slot = 0.0
        """Monotonic time in seconds before which nothing is sent."""

    async def run(self, requests: Mapping[str, ChatRequest]) -> None:
        waiting = iter(requests.items())
        tasks: set[asyncio.Task[ChatAnswer]] = set()
        async with openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.endpoint.base_url,
            timeout=self.endpoint.timeout_s,
            max_retries=0,
        ) as client:
            try:
                while True:
                    self.progress.check()
                    while (
                        len(tasks) < self.endpoint.concurrency
                        and self.allowed()
                        and (following := next(waiting, None))
                    ):
                        tasks.add(asyncio.create_task(self._ask(client, *following)))
                    if not tasks:
                        return
                    done, tasks = await asyncio.wait(
                        tasks, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    self._keep(done)
                    for task in done:
                        task.result()  # raises the error of a failed request
            finally:
                if tasks:
                    done, late = await asyncio.wait(tasks, timeout=GRACE_S)
                    for task in late:
                        task.cancel()
                    await asyncio.gather(*late, return_exceptions=True)
                    self._keep(done)

    def _keep(self, done: set[asyncio.Task[ChatAnswer]]) -> None:
        answers = [task.result() for task in done if not task.exception()]
        if answers:
            self.keep(answers)

    async def _ask(self, client: openai.AsyncOpenAI, hash: str, request: ChatRequest) -> ChatAnswer:
        for tried in range(self.endpoint.retries + 1):
            await self._slot()
            try:
                return _answer(hash, await client.chat.completions.create(**request))
            except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
                if rejected := self._rejection(error, request):
                    return ChatAnswer(request=hash, rejected=rejected)
                if tried == self.endpoint.retries:
                    raise UserError(
                        f"{self.endpoint.base_url}: no answer in {tried + 1} tries; the last: "
                        f"{_said(error)}. Answers so far are saved; run it again"
                    ) from None
                await self._wait(error, tried)
        raise AssertionError("the last try returns or raises")

    def _rejection(self, error: Exception, request: ChatRequest) -> str | None:
        """Handle an error that another try cannot fix: raise UserError if it concerns the endpoint,
        return status and code if it concerns this request. None: try again."""
        url, status = self.endpoint.base_url, getattr(error, "status_code", None)
        if status in (401, 403):
            raise UserError(f"{url}: {status}, the key is refused; set {KEY}") from None
        if status == 404:
            raise UserError(
                f"{url}: 404, the endpoint does not know the model {request['model']!r} or the "
                "path; check the model's name and RLT_REFINE_BASE_URL"
            ) from None
        if status in (400, 413, 422):
            return _said(error)
        if status is not None and status < 500 and status not in (408, 409, 429):
            raise UserError(f"{url}: {_said(error)}") from None
        return None

    async def _slot(self) -> None:
        """Wait until the rate limit allows one more request."""
        rate = self.endpoint.requests_per_minute
        while (wait := self.next_slot - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if rate:
            self.next_slot = time.monotonic() + 60 / rate

    async def _wait(self, error: Exception, tried: int) -> None:
        told = _retry_after(error)
        if told is None:
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tried)
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            return
        if told > LONGEST_RETRY_AFTER_S:
            raise UserError(
                f"{self.endpoint.base_url}: it asks for a pause of {told:.0f} s; the answers so "
                "far are saved: run it again then"
            )
        # The limit belongs to the key, so it holds for all requests.
        self.next_slot = max(self.next_slot, time.monotonic() + told)


def _said(error: Exception) -> str:
    """Return the kind of a failure: status and code of an answer, or why there is none."""
    if isinstance(error, openai.APIStatusError):
        code = error.code if error.code in CODES else type(error).__name__
        fix = next((fix for field, fix in FIXES.items() if field == error.param), "")
        return f"{error.status_code} {code}{fix}"
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__ if error.__cause__ else "no connection"
        return f"{type(error).__name__} ({cause})"
    return "the reply is not a chat completion"


def _retry_after(error: Exception) -> float | None:
    """Return the seconds that the endpoint asks to wait; None if it does not say."""
    if not isinstance(error, openai.APIStatusError):
        return None
    value = error.response.headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        when = parsedate_to_datetime(value).astimezone(UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    return None


def _answer(hash: str, said: object) -> ChatAnswer:
    """Convert a reply; the key is masked in it. Raises ValueError if it is not a chat completion,
    which the client does not check."""
    try:
        if not isinstance(said, ChatCompletion):
            raise TypeError
        choice, usage = said.choices[0], said.usage
        answer = ChatAnswer(
            request=hash,
            text=choice.message.content or "",
            finish_reason=choice.finish_reason,
            refusal=choice.message.refusal,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
        )
    except (AttributeError, LookupError, TypeError, ValidationError):
        raise ValueError("not a chat completion") from None
    answer.text.encode()  # half of a surrogate pair cannot be stored
    texts = {name: getattr(answer, name) for name in ("text", "finish_reason", "refusal")}
    return answer.model_copy(update={name: masked(text) for name, text in texts.items() if text})
