"""Chat templates: third-party code, rendered the same on every day and machine.

Only four chats are rendered, with slots for their texts; the ids of real texts are inserted later
(`rlt_core.prompts.renderer`). A separate process with limits renders them, so that no template
hangs or fills the memory. Imports no torch, so that this process starts fast.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, time
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SYSTEM_SLOT, USER_SLOT, ASSISTANT_SLOT = "slotForSystem", "slotForUser", "slotForAssistant"
NEXT_SLOT = "slotForNext"
"""Placeholders for the texts of a chat while its template is rendered."""
CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES, CHARACTERS = 3, 120, 1 << 30, 1 << 20
"""Limits of a template: time and memory of its process, length of a rendered chat."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of models from scratch."""

SYSTEM = {"role": "system", "content": SYSTEM_SLOT}
USER = {"role": "user", "content": USER_SLOT}
ASSISTANT = {"role": "assistant", "content": ASSISTANT_SLOT}
NEXT = {"role": "user", "content": NEXT_SLOT}


class BadTemplate(ValueError):
    """A template cannot be used; the message says why."""


@dataclass(frozen=True)
class Chats:
    """A template's rendering of each chat; None if it rejects the chat."""

    prompt: str
    """A user's turn, up to the assistant's text."""
    system: str | None
    """The same after a system turn."""
    answered: str | None
    """A user's and an assistant's turn."""
    continued: str | None
    """The same before a further user's turn."""

    @property
    def takes_system(self) -> bool:
        """Whether the template has system turns; if not, the system prompt begins the user's."""
        return SYSTEM_SLOT in (self.system or "")

    def header(self, opened: str, closed: str) -> str:
        """Return the text between a question and the assistant's text, without a thought that the
        template opens there: the prompt format opens it, with these tags, in prompts and rows.
        Raises BadTemplate for any other text that the template writes for the assistant."""
        after = self.prompt.partition(USER_SLOT)[2]
        header = after.rstrip().removesuffix(opened)
        if header == after.rstrip():
            header = after
        turns = self.continued or self.answered or ""
        usual = turns.partition(USER_SLOT)[2].partition(ASSISTANT_SLOT)[0]
        more = header[_shared(header, usual) :] if usual else ""
        if more.strip() or any(tag and tag in header for tag in (opened, closed)):
            raise BadTemplate(
                f"it begins the assistant's turn with {(more or header).strip()!r}, but the format "
                f"opens a thought with {opened!r}; choose the format whose `thought_open` it is"
            )
        return header


def _shared(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class _Generation(Extension):
    """Ignores `{% generation %}`, which marks an assistant's text for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment(day: date) -> ImmutableSandboxedEnvironment:
    """The environment of transformers (`transformers.utils.chat_template_utils`), but with a fixed
    date and without random functions."""
    now = datetime.combine(day, time())

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


def _render(template: str, tokens: Mapping[str, str], day: date) -> Chats:
    """Render the chats. Raises BadTemplate if a user's turn cannot be rendered, MemoryError for a
    text that is too long. Other templates than our own only ever get here in a process of their
    own: one could tell by an object's address where it is, and run away here only."""
    try:
        compiled = _environment(day).from_string(template)
    except (TemplateError, RecursionError) as error:
        raise BadTemplate(f"it is not valid: {error}") from None
    variables = {**tokens, "tools": None, "documents": None}
    refusals: list[Exception] = []

    def attempt(*messages: dict[str, str], prompt: bool = False) -> str | None:
        try:
            text = compiled.render(
                messages=[dict(each) for each in messages], add_generation_prompt=prompt,
                **variables,
            )  # fmt: skip
        except MemoryError:
            raise
        except Exception as error:  # a template refuses a chat in any way it likes
            refusals.append(error)
            return None
        if len(text) > CHARACTERS:
            raise MemoryError
        return text

    shown = attempt(USER, prompt=True)
    if shown is None:
        raise BadTemplate(f"it refuses a user's turn: {refusals[0]}")
    return Chats(
        shown,
        attempt(SYSTEM, USER, prompt=True),
        attempt(USER, ASSISTANT),
        attempt(USER, ASSISTANT, NEXT),
    )


def chats(template: str, tokens: Mapping[str, Any], day: date) -> Chats:
    """Render the chats with an untrusted template, in a process with limited time and memory;
    `tokens`: the tokenizer's named tokens, for instance `bos_token`. Raises BadTemplate if it
    cannot render a user's turn."""
    named = {name: value for name, value in tokens.items() if isinstance(value, str)}
    return _chats(template, tuple(sorted(named.items())), day)


@lru_cache
def _chats(template: str, tokens: tuple[tuple[str, str], ...], day: date) -> Chats:
    if template == CHATML:
        return _render(template, dict(tokens), day)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "rlt_core.chat_templates"],
            input=json.dumps([template, dict(tokens), day.isoformat()]),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise BadTemplate(f"it renders for more than {WALL_SECONDS} s") from None
    if child.returncode:
        raise BadTemplate(
            f"to render it takes more than {CPU_SECONDS} s, {MEMORY_BYTES >> 30} GiB or "
            f"{CHARACTERS:,} characters"
        )
    reply = json.loads(child.stdout)
    if "error" in reply:
        raise BadTemplate(reply["error"])
    return Chats(**reply)


def try_template(template: str, tokens: Mapping[str, Any], day: date) -> Chats:
    """Return `chats`, rendered twice. Raises BadTemplate if they differ."""
    first = chats(template, tokens, day)
    _chats.cache_clear()
    if chats(template, tokens, day) != first:
        raise BadTemplate("it renders the same chat differently at two times")
    return first


def _main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    template, tokens, day = json.load(sys.stdin)
    try:
        reply = asdict(_render(template, tokens, date.fromisoformat(day)))
    except BadTemplate as error:
        reply = {"error": str(error)[:1000]}
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    _main()
