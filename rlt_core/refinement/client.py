"""Chat completions: bounded concurrency, a pace, tries after faults; who asks keeps each answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict

from rlt_core.config.refinement import Endpoint
from rlt_core.errors import UserError
from rlt_core.progress import Progress

KEY = "RLT_REFINE_KEY"
"""Environment variable with the endpoint's key; unset for a server that wants none."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Waits between two tries double from one to the other."""
LONGEST_RETRY_AFTER_S = 600.0
"""An endpoint that wants a longer pause than this ends the run, which can be taken up later."""
GRACE_S = 5.0
"""Time that requests under way have to finish once the work ends early; their answers are kept."""
POLL_S = 0.2

Request = dict[str, Any]


class Answer(BaseModel):
    """What the endpoint said to one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: str
    """Hash of the request."""
    text: str = ""
    finish_reason: str | None = None
    refusal: str | None = None
    rejected: str | None = None
    """The endpoint's reason for refusing the request itself (400, 413, 422)."""
    prompt_tokens: int | None = None
    """None: the endpoint gave no usage."""
    completion_tokens: int | None = None


def request_hash(request: Request) -> str:
    """Equal requests have equal hashes."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def ask_all(
    requests: Sequence[Request],
    endpoint: Endpoint,
    keep: Callable[[list[Answer]], None],
    progress: Progress,
) -> None:
    """Ask all; `keep` hears of the answers that came since it was last called.

    Raises UserError for an endpoint that cannot be reached, refuses the key or does not know the
    model, or keeps failing; whatever `keep` raises; Stopped. All answers so far were kept.
    """
    asyncio.run(_Asking(endpoint, keep, progress).run(requests))


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY}: there are characters in it that no key has; set it again")
    return key or "none"


class _Asking:
    """One call of `ask_all`."""

    def __init__(
        self, endpoint: Endpoint, keep: Callable[[list[Answer]], None], progress: Progress
    ) -> None:
        self.endpoint, self.keep, self.progress = endpoint, keep, progress
        self.key = _key()
        self.next_slot = 0.0
        """Monotonic seconds before which nothing is sent."""

    async def run(self, requests: Sequence[Request]) -> None:
        waiting = iter(requests)
        tasks: set[asyncio.Task[Answer]] = set()
        async with openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.endpoint.base_url,
            timeout=self.endpoint.timeout_s,
            max_retries=0,
        ) as client:
            try:
                while True:
                    self.progress.check()
                    while len(tasks) < self.endpoint.concurrency:
                        request = next(waiting, None)
                        if request is None:
                            break
                        tasks.add(asyncio.create_task(self._ask(client, request)))
                    if not tasks:
                        return
                    done, tasks = await asyncio.wait(
                        tasks, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    self._take(done)
            finally:
                await self._end(tasks)

    def _take(self, done: set[asyncio.Task[Answer]]) -> None:
        """Keep what came, then raise what failed."""
        failed = [error for task in done if (error := task.exception())]
        answers = [task.result() for task in done if not task.exception()]
        if answers:
            self.keep(answers)
        if failed:
            raise failed[0]

    async def _end(self, tasks: set[asyncio.Task[Answer]]) -> None:
        if not tasks:
            return
        done, late = await asyncio.wait(tasks, timeout=GRACE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        answers = [task.result() for task in done if not task.exception()]
        if answers:
            self.keep(answers)

    # ------------------------------------------------------------ one request
    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Answer:
        for tried in range(self.endpoint.retries + 1):
            await self._slot()
            try:
                return _answer(request, await client.chat.completions.create(**request))
            except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
                rejected = self._final(error, request)
                if rejected:
                    return rejected
                if tried == self.endpoint.retries:
                    raise UserError(
                        f"{self.endpoint.base_url}: no answer in {tried + 1} tries; the last: "
                        f"{self._said(error).rstrip('.')}. What was answered is kept: run it again"
                    ) from None
                await self._wait(error, tried)
        raise AssertionError("the last try returns or raises")

    def _final(self, error: Exception, request: Request) -> Answer | None:
        """What no further try would mend: of the endpoint (raised) or of this request."""
        url, model = self.endpoint.base_url, request["model"]
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            # The endpoint's own words may quote the key.
            raise UserError(f"{url}: {error.status_code}, the key is refused; set {KEY}") from None
        if isinstance(error, openai.NotFoundError):
            raise UserError(
                f"{url}: 404, the endpoint does not know the model {model!r} or the path; "
                "check the model's name and RLT_REFINE_BASE_URL"
            ) from None
        if isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422):
            return Answer(request=request_hash(request), rejected=self._said(error))
        if isinstance(error, openai.APIStatusError) and not _passing(error.status_code):
            raise UserError(f"{url}: {self._said(error)}") from None
        return None

    async def _slot(self) -> None:
        """Wait until the pace lets one more request go."""
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
                f"{self.endpoint.base_url}: it wants a pause of {told:.0f} s; what was answered "
                "is kept: run it again then"
            )
        # It holds for everybody who asks with this key.
        self.next_slot = max(self.next_slot, time.monotonic() + told)

    def _said(self, error: Exception) -> str:
        """In one line, without the key."""
        words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return " ".join(words.replace(self.key, "…").split())[:300]


def _passing(status: int) -> bool:
    return status in (408, 409, 429) or status >= 500


def _retry_after(error: Exception) -> float | None:
    """Seconds that the endpoint asked to wait."""
    if not isinstance(error, openai.APIStatusError):
        return None
    value = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _answer(request: Request, said: object) -> Answer:
    """Raises ValueError for what is no chat completion."""
    if not isinstance(said, ChatCompletion) or not said.choices:
        raise ValueError("the endpoint's answer is no chat completion")
    choice, usage = said.choices[0], said.usage
    return Answer(
        request=request_hash(request),
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        refusal=choice.message.refusal,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
    )
