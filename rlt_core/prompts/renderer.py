"""Contexts of teacher and student, and the spans inside them, by token id.

A context is joined from pieces that are encoded separately: template, question, tags, solution,
explanation. So an explanation has the same ids under teacher and student, and the edges of a span
are known by construction: nothing is re-tokenised or searched for.

Padding is encoded together with its neighbour, as a tokenizer reads the whole text:

- After an opening tag it belongs to the tag (Qwen makes one token of `>` and a line break).
- Before a closing tag it belongs to the text if one token holds the end of both (`.` and line
  breaks), else to the tag. `encode_block` returns a text's ids under this rule.
- A sampled explanation keeps its ids. Padding that the model wrote as separate tokens is assigned
  to the tag, so that it does not occur twice; a closing tag adds only the padding that the text
  before it lacks. If the model wrote none, the student still reads padding.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from rlt_core.chat_templates import ASSISTANT_SLOT, SYSTEM_SLOT, USER_SLOT, Chats, chats
from rlt_core.errors import UserError
from rlt_core.prompts.format import PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""Label of a token that is not trained on."""
ENCODED_TEXTS = 256
"""Number of texts whose ids are cached."""
BLOCK_TOKENS = 256
"""Tokens decoded at a time in the search for a tag."""
CHARACTER_BYTES = 4
"""Most bytes of a character."""
WORD = "a"
"""Represents the text after an opening tag."""
GENERATION_CONFIG = "generation_config.json"


class Span(NamedTuple):
    """Token positions start <= i < end."""

    start: int
    end: int


@dataclass(frozen=True)
class Context:
    """A sequence to score, and the spans of its parts."""

    ids: list[int]
    think: Span
    """The explanation's tokens, with its padding's if the format scores them. Empty for an empty
    explanation."""
    solution: Span | None
    """The solution's tokens as `encode_block` returns them, with its padding's if the format scores
    them; None in a teacher's context."""


@dataclass(frozen=True)
class Explanation:
    """The content of a completion between the tags of explanation or thought."""

    ids: list[int]
    text: str
    """The text of the ids, without the padding before a closing tag."""
    closed: bool
    """The closing tag was written."""


@dataclass(frozen=True)
class Thinking:
    """A student's completion up to the end of its thought."""

    ids: list[int]
    """Without the closing tag and the end of turn."""
    start: int
    """Where the thought begins: the first token with more than the opening tag and its padding."""
    closed: bool
    """The closing tag was written."""


@dataclass(frozen=True)
class SplitAnswer:
    """The parts of a student's completion."""

    formatted: bool
    """Thought and solution, each once and in this order, and nothing else."""
    thought: str | None
    solution: str | None


@dataclass(frozen=True)
class Row:
    """A sequence to train on."""

    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids`; IGNORED for tokens without a loss."""


class _Found(NamedTuple):
    """Position of a tag in a list of ids. A token may hold the tag's edge and other text."""

    before: int
    """Number of ids entirely before the tag."""
    leftover: str
    """Text between those ids and the tag."""
    end: int
    """Number of ids up to the tag's end."""
    after: int
    """Number of ids up to the end of `rest`: more if a character begins in the tag's last token."""
    rest: str
    """Their text after the tag."""


class Renderer:
    """Builds and reads contexts of one prompt format for one tokenizer.

    Raises UserError if the tokenizer's chat template does not support the format.
    """

    def __init__(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        self.format = format
        self.tokenizer = tokenizer
        # A group of completions has one question and one solution.
        self._encoded = lru_cache(ENCODED_TEXTS)(self._encode_text)
        self._rendered, self._header = self._chats()
        self.system_in_user_turn: bool = not self._rendered.takes_system
        """The template rejects or ignores system turns: system prompts begin the user's turn."""
        self._teacher_turns = self._chat_pieces(format.teacher_system)
        if format.student_system is None:
            raise UserError(
                f"prompt format {format.name}: student_system is null, for a system prompt of the "
                "data's own, and no data is read here; write the prompt"
            )
        self._student_turns = self._chat_pieces(format.student_system)
        self.end_of_turn: int = self._end_of_turn()
        """Closes an assistant turn; the last token of every training row."""
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.end_of_turn} | self._eos_ids()))
        """Tokens that end a completion."""
        for text in (*format.tags, format.padding, format.separator):
            if not set(self.stop_ids).isdisjoint(self._encode_fixed(text)):
                raise UserError(
                    f"prompt format {format.name}: {text!r} ends the model's turn; write another"
                )
        self._tags = lru_cache(ENCODED_TEXTS)(self._encode_tags)

    @cached_property
    def words(self) -> int:
        """Size of the tokenizer's vocabulary; a model's head may have more rows."""
        return max(self.tokenizer.get_vocab().values()) + 1

    # ------------------------------------------------------------ text and ids
    def encode(self, text: str) -> list[int]:
        """Return the ids of a user's text. Text that spells a control token remains text."""
        return list(self._encoded(text))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def encode_block(self, text: str) -> list[int]:
        """Return the ids of an explanation or solution between its tags, under the padding rule."""
        return self._without_padding(self.encode(text + self.format.missing_padding(text)))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a completion up to its first end of turn."""
        return self._text(self._before_stop(ids))

    def _encode_fixed(self, text: str) -> list[int]:
        """Ids of template text and tags: control tokens become control tokens."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)[
            "input_ids"
        ]

    def _encode_tags(self, text: str) -> list[int]:
        """Ids of tags; tags that end with padding are encoded before a word. If that word would
        share a token with them (no known tokenizer does this), they are encoded alone."""
        alone = self._encode_fixed(text)
        if not self.format.padding or not text.endswith(self.format.padding):
            return alone
        ids = self._encode_fixed(text + WORD)
        ends = (n for n in range(1, len(ids)) if self._text(ids[:n]) == text)
        return next((ids[:n] for n in ends), alone)

    def _text(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def _before_stop(self, ids: Sequence[int]) -> list[int]:
        stop = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return list(ids[:stop])

    # ------------------------------------------------------------ padding
    def _missing_behind(self, ids: Sequence[int]) -> str:
        size = len(self.format.padding.encode())
        return self.format.missing_padding(self._text(ids[-size:])) if size else ""

    def _without_padding(self, ids: list[int]) -> list[int]:
        """The ids without final tokens that are exactly the padding; all of them if the padding is
        part of a longer run of the same, or of a token with other text."""
        padding = self.format.padding
        for n in range(1, len(padding.encode()) + 1):
            if self._text(ids[-n:]) == padding:
                return ids[:-n] if self._missing_behind(ids[:-n]) == padding else ids
        return ids

    def _close(self, block: Sequence[int], tags: str) -> list[int]:
        """Ids of the tags after a text, with the padding that it lacks."""
        return [*self._tags(self._missing_behind(block) + tags)]

    def _scored(self, padding: str, *tags: Sequence[int], end: bool = False) -> int:
        """Number of scored tokens at one edge of some tags: whole padding, equal in all of them."""
        if not self.format.score_padding:
            return 0
        for n in range(1, len(padding.encode()) + 1):
            edges = [list(ids[-n:] if end else ids[:n]) for ids in tags]
            if self._text(edges[0]) == padding and all(edge == edges[0] for edge in edges):
                return n
        return 0

    # ------------------------------------------------------------ prompts
    def teacher_prompt(self, question: str, solution: str) -> list[int]:
        """Return all before the explanation: chat, prefilled solution, opening tag and padding."""
        solution_ids = self.encode_block(solution)
        return [
            *self._chat(self._teacher_turns, question),
            *self._tags(self.format.solution_open + self.format.padding),
            *solution_ids,
            *self._close(solution_ids, self._to_explanation),
        ]

    def student_prompt(self, question: str) -> list[int]:
        """Return the chat up to the assistant's turn; the student writes the thought tag itself."""
        return self._chat(self._student_turns, question)

    def _chat(self, pieces: tuple[list[int], list[int]], question: str) -> list[int]:
        before, after = pieces
        return [*before, *self.encode(question), *after]

    @property
    def _to_explanation(self) -> str:
        f = self.format
        return f.solution_close + f.separator + f.explanation_open + f.padding

    @property
    def _to_thought(self) -> str:
        return self.format.thought_open + self.format.padding

    def to_solution(self, think_ids: Sequence[int]) -> list[int]:
        """Return the ids that a student writes between a thought and its solution."""
        f = self.format
        return self._close(think_ids, f.thought_close + f.separator + f.solution_open + f.padding)

    # ------------------------------------------------------------ contexts to score
    def teacher_context(self, question: str, solution: str, think_ids: Sequence[int]) -> Context:
        """Return the teacher's prompt and completion: pi_T(t | question, solution)."""
        before = self.teacher_prompt(question, solution)
        first, padding = self._padding_of(think_ids)
        ids = [*before, *think_ids, *padding]
        return Context(ids, Span(len(before) - first, len(ids)), None)

    def student_context(self, question: str, think_ids: Sequence[int], solution: str) -> Context:
        """Return question, explanation, solution: pi_S(t | question), pi_S(s | question, t)."""
        before = [*self.student_prompt(question), *self._tags(self._to_thought)]
        first, padding = self._padding_of(think_ids)
        think = Span(len(before) - first, len(before) + len(think_ids) + len(padding))
        between = self.to_solution(think_ids)
        solution_ids = self.encode_block(solution)
        ids = [*before, *think_ids, *between, *solution_ids]
        start = len(ids) - len(solution_ids)
        start -= self._scored(self.format.padding, between, end=True)
        close = self._close(solution_ids, self.format.solution_close)
        ids += close[: self._scored(self._missing_behind(solution_ids), close)]
        return Context(ids, think, Span(start, len(ids)))

    def _padding_of(self, think_ids: Sequence[int]) -> tuple[int, list[int]]:
        """Scored tokens before an explanation, and those after it; none for an empty one."""
        if not think_ids:
            return 0, []
        opened = self._tags(self._to_explanation), self._tags(self._to_thought)
        closed = self._close(think_ids, self.format.explanation_close), self.to_solution(think_ids)
        last = self._scored(self._missing_behind(think_ids), *closed)
        return self._scored(self.format.padding, *opened, end=True), closed[0][:last]

    # ------------------------------------------------------------ rows to train on
    def teacher_sft_row(self, question: str, solution: str, trace_text: str) -> Row:
        """Return a row with a loss on the teacher's trace, closing tag and end of turn."""
        trace = self.encode_block(trace_text)
        target = [*trace, *self._close(trace, self.format.explanation_close), self.end_of_turn]
        return _row(self.teacher_prompt(question, solution), target)

    def student_sft_row(self, question: str, think_ids: Sequence[int], solution: str) -> Row:
        """Return a row with a loss on the whole assistant turn."""
        solution_ids = self.encode_block(solution)
        target = [
            *self._tags(self._to_thought),
            *think_ids,
            *self.to_solution(think_ids),
            *solution_ids,
            *self._close(solution_ids, self.format.solution_close),
            self.end_of_turn,
        ]
        return _row(self.student_prompt(question), target)

    # ------------------------------------------------------------ completions
    def split_completion(self, ids: Sequence[int]) -> Explanation:
        """Return the explanation in a teacher's completion, with its ids as sampled.

        Padding before the tag is dropped if it has tokens of its own. If a token holds both the
        explanation's last characters and the tag's first ones, those characters are re-encoded at
        the end. Without the tag, all up to the end of turn counts.
        """
        written = self._before_stop(ids)
        return self._up_to(self.format.explanation_close, written)

    def thought_of(self, ids: Sequence[int]) -> Explanation:
        """Return the thought in a student's completion, with its ids as sampled.

        It is between the first opening tag and the first closing tag after that, as in
        `split_answer`; padding is dropped directly after the opening tag, and before the closing
        one as in `split_completion`; other white space is kept. Without an opening tag all from the
        start counts, without a closing tag all up to the end of turn. Text that shares a token with
        a tag is re-encoded.
        """
        written = self._before_stop(ids)
        opened = self._opening(written)
        if opened:
            written = self.encode(opened.rest) + written[opened.after :]
        return self._up_to(self.format.thought_close, written)

    def thinking_of(self, ids: Sequence[int]) -> Thinking | None:
        """Return the completion up to its thought's end, if it has one. See `thought_of`."""
        written = self._before_stop(ids)
        opened = self._opening(written)
        if opened is None:
            return None
        start = opened.end - 1 if opened.rest else opened.end
        thought = self._up_to(self.format.thought_close, written[start:])
        return Thinking(written[:start] + thought.ids, start, thought.closed)

    def _opening(self, written: list[int]) -> _Found | None:
        """The first tag that opens a thought, with its padding if present."""
        tag = self._find(self.format.thought_open, written)
        if tag is None or not self.format.padding:
            return tag
        padded = self._find(self._to_thought, written)
        return padded if padded is not None and padded[:2] == tag[:2] else tag

    def split_answer(self, text: str) -> SplitAnswer:
        """Return thought and solution of a student's completion, stripped of white space.

        An unformatted completion still yields the last complete solution block, if it has one.
        """
        tags = (self.format.thought_open, self.format.thought_close,
                self.format.solution_open, self.format.solution_close)  # fmt: skip
        thought_open, thought_close, solution_open, solution_close = map(re.escape, tags)
        thought = f"{thought_open}(.*?){thought_close}"
        solution = f"{solution_open}(.*?){solution_close}"
        whole = re.fullmatch(rf"\s*{thought}\s*{solution}\s*", text, re.DOTALL)
        if whole and all(text.count(tag) == 1 for tag in tags):
            return SplitAnswer(True, whole[1].strip(), whole[2].strip())
        first_thought = re.search(thought, text, re.DOTALL)
        solutions: list[str] = re.findall(solution, text, re.DOTALL)
        return SplitAnswer(
            formatted=False,
            thought=first_thought[1].strip() if first_thought else None,
            solution=solutions[-1].strip() if solutions else None,
        )

    def _up_to(self, tag: str, written: list[int]) -> Explanation:
        """The content before a closing tag, or everything."""
        found = self._find(tag, written)
        if found is None:
            return Explanation(written, self._text(written), closed=False)
        ids = self._without_padding(written[: found.before] + self.encode(found.leftover))
        return Explanation(ids, self._text(ids).removesuffix(self.format.padding), closed=True)

    def _find(self, tag: str, ids: list[int]) -> _Found | None:
        """Find the first occurrence of a tag in the decoded ids, however it was tokenised.

        A window overlaps the next by as many tokens as the tag can have; the tag consists of
        complete characters, so one that a window's edge splits can neither hide nor fake it.
        """
        margin = len(tag.encode())
        for start in range(0, len(ids), BLOCK_TOKENS):
            window = ids[start : start + BLOCK_TOKENS + margin]
            if tag not in self._text(window):
                continue
            end = bisect_left(range(len(window)), True, key=lambda n: tag in self._text(window[:n]))
            text = self._text(window[:end])
            at = text.index(tag)
            prefixes = ((n, self._text(window[:n])) for n in range(end - 1, -1, -1))
            before, kept = next((n, kept) for n, kept in prefixes if text[:at].startswith(kept))
            # A character that begins in the tag's last token ends at most three tokens later.
            reach = [self._text(ids[start : start + n]) for n in range(end, end + CHARACTER_BYTES)]
            more = next(n for n, each in enumerate(reach) if reach[-1].startswith(each))
            rest = reach[more][at + len(tag) :]
            before, end, after = (start + n for n in (before, end, end + more))
            return _Found(before, text[len(kept) : at], end, after, rest)
        return None

    # ------------------------------------------------------------ chat template
    def _chats(self) -> tuple[Chats, str]:
        """The template's rendering of each chat, and the text that precedes the assistant's."""
        tokenizer, format = self.tokenizer, self.format
        try:
            template = tokenizer.get_chat_template()
            shown = chats(template, tokenizer.special_tokens_map, format.template_date)
            return shown, shown.header(format.thought_open, format.thought_close)
        except ValueError as error:  # no template, or a bad one
            raise self._refused(str(error)) from None

    def _chat_pieces(self, system: str) -> tuple[list[int], list[int]]:
        """Ids before and after the question in a chat that ends where the assistant begins.

        If the template has no system turns, the system prompt precedes the question in the user's
        turn.
        """
        shown = self._rendered.prompt
        if system and not self.system_in_user_turn:
            shown = cast(str, self._rendered.system)
        before, _ = self._cut(shown, USER_SLOT)
        tail = self._encode_fixed(self._header)
        if not system:
            return self._encode_fixed(before), tail
        if self.system_in_user_turn:
            return [*self._encode_fixed(before), *self.encode(f"{system}\n\n")], tail
        start, middle = self._cut(before, SYSTEM_SLOT)
        return [*self._encode_fixed(start), *self.encode(system), *self._encode_fixed(middle)], tail

    def _end_of_turn(self) -> int:
        """The control token that the chat template writes after an assistant's text.

        If it writes several, the model's EOS tokens have precedence: some templates close a part of
        the turn first. Some close a turn only when another follows.
        """
        stops = self._eos_ids()
        last, earlier = (
            self._leading_controls((text or "").partition(ASSISTANT_SLOT)[2])
            for text in (self._rendered.answered, self._rendered.continued)
        )
        known = [token for token in (*last[:1], *earlier) if token in stops]
        return next(iter([*known, *last, *earlier]), self.tokenizer.eos_token_id)

    def _leading_controls(self, text: str) -> list[int]:
        """Added tokens, special or not, at the start of a text."""
        added = self.tokenizer.added_tokens_decoder
        return list(takewhile(added.__contains__, self._encode_fixed(text.lstrip())))

    def _eos_ids(self) -> set[int]:
        """EOS tokens of the tokenizer and of its model's generation_config.json."""
        found: list[int] = [self.tokenizer.eos_token_id]
        file = Path(self.tokenizer.name_or_path) / GENERATION_CONFIG
        if self.tokenizer.name_or_path and file.is_file():
            listed = json.loads(file.read_text()).get("eos_token_id")
            found += listed if isinstance(listed, list) else [listed]
        return set(found) - {None}

    def _refused(self, reason: str) -> UserError:
        where = self.tokenizer.name_or_path or "the tokenizer"
        return UserError(f"prompt format {self.format.name}: {where}: its chat template: {reason}")

    def _cut(self, text: str, slot: str) -> tuple[str, str]:
        if text.count(slot) != 1:
            raise self._refused("it does not show each message exactly once")
        before, _, after = text.partition(slot)
        return before, after


def _row(prompt: list[int], target: list[int]) -> Row:
    return Row(prompt + target, [IGNORED] * len(prompt) + target)
