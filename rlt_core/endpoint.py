"""Requests to an LLM behind an OpenAI-compatible endpoint, and its answers.

Requests run with bounded concurrency, at a limited rate; openai's client retries them after
transient faults, and waits as long as the endpoint asks for (up to a minute).
"""

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import openai
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict, ValidationError

from rlt_core.config.endpoint import ChatConfig, Endpoint
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.secrets import SHORTEST, masked

KEY = "RLT_REFINE_KEY"
"""Environment variable with the endpoint's API key; unset for a server that needs none."""
GRACE_S = 5.0
"""Time that active requests have to finish when the work ends early; their answers are kept."""
POLL_S = 0.2
LIMIT = "max_tokens"
"""Reasoning models of OpenAI refuse this field, and take `max_completion_tokens` in its place:
https://platform.openai.com/docs/api-reference/chat/create."""
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
    "max_tokens": " (it refuses this `max_tokens`: try less)",
    "temperature": " (it refuses this `temperature`: try 1)",
}
"""What helps where an error names this field of a request."""

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
        self.limit = LIMIT
        """The endpoint's name of this field."""
        self.next_slot = 0.0
        """Monotonic time in seconds before which nothing is sent."""

    async def run(self, requests: Mapping[str, ChatRequest]) -> None:
        waiting = iter(requests.items())
        tasks: set[asyncio.Task[ChatAnswer]] = set()
        async with openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.endpoint.base_url,
            timeout=self.endpoint.timeout_s,
            max_retries=self.endpoint.retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._slot]}),
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

    async def _ask(
        self, client: openai.AsyncOpenAI, hash: str, request: ChatRequest, failed: int = 0
    ) -> ChatAnswer:
        """Return the answer, or why this request is refused. A reply that is no completion, which
        the client does not check, is asked for again: so often it has `failed`. Raises UserError if
        the fault is the endpoint's."""
        sent = {self.limit if name == LIMIT else name: it for name, it in request.items()}
        url, status, fix = self.endpoint.base_url, None, "answers so far are saved; run it again"
        try:
            return _answer(hash, await client.chat.completions.create(**sent))
        except UnicodeError:
            return ChatAnswer(request=hash, rejected="the reply's text is not Unicode")
        except ValueError:
            if failed < self.endpoint.retries:
                return await self._ask(client, hash, request, failed + 1)
            said = "the reply is not a chat completion"
        except openai.APIStatusError as error:
            status = error.status_code
            code = error.code if error.code in CODES else type(error).__name__
            if LIMIT in sent and (error.code, error.param) == ("unsupported_parameter", LIMIT):
                self.limit = "max_completion_tokens"
                return await self._ask(client, hash, request)
            said = f"{status} {code}{FIXES.get(error.param or '', '')}"
            if status in (400, 413, 422):
                return ChatAnswer(request=hash, rejected=said)
        except openai.APIConnectionError as error:
            said = f"{type(error).__name__} ({type(error.__cause__).__name__})"
        if status in (401, 403):
            fix = f"the key is refused; set {KEY}"
        elif status == 404:
            fix = (
                f"it does not know the model {request['model']!r} or the path; check the model's "
                "name and RLT_REFINE_BASE_URL"
            )
        raise UserError(
            f"{url}: no answer, after at most {self.endpoint.retries} retries: {said}; {fix}"
        ) from None

    async def _slot(self, _: object) -> None:
        """Wait until the rate limit allows one more request or retry."""
        rate = self.endpoint.requests_per_minute
        while (wait := self.next_slot - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if rate:
            self.next_slot = time.monotonic() + 60 / rate


def _answer(hash: str, said: object) -> ChatAnswer:
    """Convert a reply; a key is masked in it, unless it is so short that it could be a word or a
    number of the text. Raises ValueError if it is not a chat completion, UnicodeError for a text
    that cannot be stored."""
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
    kept = {name: masked(text, SHORTEST) for name, text in texts.items() if text}
    return answer.model_copy(update=kept)
