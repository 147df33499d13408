"""Contexts of teacher and student, and the spans inside them, by token id.

A context is joined from pieces that are encoded on their own: template, question, tags, solution,
explanation. So an explanation has the same ids under teacher and student, and a span's edges are
known by construction: nothing is re-tokenised or searched for.

Padding is encoded with what it stands next to, as a tokenizer reads the whole text:

- Behind an opening tag it belongs to the tag (Qwen makes one token of `>` and a line break).
- In front of a closing tag it belongs to the text where one token holds the end of both (`.` and
  line breaks), else to the tag. `encode_block` gives a text's ids under this rule.
- A sampled explanation keeps its ids. Padding that the model wrote as tokens of its own is left to
  the tag, so that it is not there twice; a closing tag brings only the padding that the text in
  front of it does not end with yet. A model that wrote none is read by the student with padding.
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
"""Texts whose ids are kept for the next context."""
BLOCK_TOKENS = 256
"""Tokens decoded at once in the search for a tag."""
CHARACTER_BYTES = 4
"""Bytes of a character at most."""
WORD = "a"
"""Stands for the text behind an opening tag."""
GENERATION_CONFIG = "generation_config.json"


class Span(NamedTuple):
    """Token positions start <= i < end."""

    start: int
    end: int


@dataclass(frozen=True)
class Context:
    """A sequence to score and where its parts lie."""

    ids: list[int]
    think: Span
    """The explanation's tokens, with those of its padding if the format scores them. Empty for an
    empty explanation."""
    solution: Span | None
    """The solution's tokens as `encode_block` gives them, with those of its padding if the format
    scores them; none in a teacher's context."""


@dataclass(frozen=True)
class Explanation:
    """What a completion says between the tags of explanation or thought."""

    ids: list[int]
    text: str
    """What the ids say, without the padding in front of a closing tag."""
    closed: bool
    """The closing tag was written."""


@dataclass(frozen=True)
class Thinking:
    """A student's completion up to the end of its thought."""

    ids: list[int]
    """Neither the closing tag nor the end of turn is among them."""
    start: int
    """Where the thought begins: at the first token that holds more than the opening tag and its
    padding."""
    closed: bool
    """The closing tag was written."""


@dataclass(frozen=True)
class Answer:
    """A student's completion, taken apart."""

    formatted: bool
    """Thought and solution, each once and in this order, and nothing else."""
    thought: str | None
    solution: str | None


@dataclass(frozen=True)
class Row:
    """A sequence to train on."""

    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids`; IGNORED where no loss is taken."""


class _Found(NamedTuple):
    """Where a tag stands in a list of ids. A token may hold the tag's edge and other text."""

    before: int
    """Ids wholly before the tag."""
    leftover: str
    """Text between those ids and the tag."""
    end: int
    """Ids up to the tag's end."""
    after: int
    """Ids up to the end of `rest`: more, if a character begins with the tag's last token."""
    rest: str
    """Their text behind the tag."""


class Renderer:
    """Builds and reads contexts of one prompt format for one tokenizer.

    Raises UserError when the tokenizer's chat template cannot carry the format.
    """

    def __init__(self, format: PromptFormat, tokenizer: PreTrainedTokenizerFast) -> None:
        self.format = format
        self.tokenizer = tokenizer
        # A group of completions has one question and one solution.
        self._encoded = lru_cache(ENCODED_TEXTS)(self._encode_text)
        self._rendered, self._header = self._chats()
        self.system_in_user_turn: bool = SYSTEM_SLOT not in (self._rendered.system or "")
        """The template refuses or ignores system turns: system prompts lead the user's turn."""
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
        self._tags = lru_cache(ENCODED_TEXTS)(self._encode_tags)

    @cached_property
    def words(self) -> int:
        """Of the tokenizer: ids below it stand for a token; a model's head may have more rows."""
        return max(self.tokenizer.get_vocab().values()) + 1

    # ------------------------------------------------------------ text and ids
    def encode(self, text: str) -> list[int]:
        """Ids of a user's text. Text that spells a control token stays text."""
        return list(self._encoded(text))

    def _encode_text(self, text: str) -> tuple[int, ...]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def encode_block(self, text: str) -> list[int]:
        """Ids of an explanation or solution between its tags, as they are read with the padding."""
        return self._without_padding(self.encode(text + self._missing(text)))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a completion up to its first end of turn."""
        return self._text(self._before_stop(ids))

    def _encode_fixed(self, text: str) -> list[int]:
        """Ids of template text and tags: control tokens become control tokens."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=False)[
            "input_ids"
        ]

    def _encode_tags(self, text: str) -> list[int]:
        """Ids of tags; those that end with padding are read in front of a word. Where that word
        would share a token with them (no tokenizer known does), they are read alone."""
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
    def _missing(self, text: str) -> str:
        """The part of the padding that a text does not end with yet."""
        padding = self.format.padding
        starts = range(len(padding), 0, -1)
        return next((padding[n:] for n in starts if text.endswith(padding[:n])), padding)

    def _missing_behind(self, ids: Sequence[int]) -> str:
        size = len(self.format.padding.encode())
        return self._missing(self._text(ids[-size:])) if size else ""

    def _without_padding(self, ids: list[int]) -> list[int]:
        """The ids without tokens at their end that are the padding and nothing else; all of them
        where the padding is part of a longer run of the same, or of a token with other text."""
        padding = self.format.padding
        for n in range(1, len(padding.encode()) + 1):
            if self._text(ids[-n:]) == padding:
                return ids[:-n] if self._missing_behind(ids[:-n]) == padding else ids
        return ids

    def _close(self, block: Sequence[int], tags: str) -> list[int]:
        """Ids of the tags behind a text, with the padding that it lacks."""
        return [*self._tags(self._missing_behind(block) + tags)]

    def _scored(self, padding: str, *tags: Sequence[int], end: bool = False) -> int:
        """Scored tokens at one edge of some tags: whole padding, alike in all of them."""
        if not self.format.score_padding:
            return 0
        for n in range(1, len(padding.encode()) + 1):
            edges = [list(ids[-n:] if end else ids[:n]) for ids in tags]
            if self._text(edges[0]) == padding and all(edge == edges[0] for edge in edges):
                return n
        return 0

    # ------------------------------------------------------------ prompts
    def teacher_prompt(self, question: str, solution: str) -> list[int]:
        """Everything before the explanation: chat, prefilled solution, opening tag and padding."""
        solution_ids = self.encode_block(solution)
        return [
            *self._chat(self._teacher_turns, question),
            *self._tags(self.format.solution_open + self.format.padding),
            *solution_ids,
            *self._close(solution_ids, self._to_explanation),
        ]

    def student_prompt(self, question: str) -> list[int]:
        """The chat up to the assistant's turn; the student writes the thought tag itself."""
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
        """What a student writes between a thought and its solution."""
        f = self.format
        return self._close(think_ids, f.thought_close + f.separator + f.solution_open + f.padding)

    # ------------------------------------------------------------ contexts to score
    def teacher_context(self, question: str, solution: str, think_ids: Sequence[int]) -> Context:
        """The teacher's own prompt and completion: pi_T(t | question, solution)."""
        before = self.teacher_prompt(question, solution)
        first, padding = self._padding_of(think_ids)
        ids = [*before, *think_ids, *padding]
        return Context(ids, Span(len(before) - first, len(ids)), None)

    def student_context(self, question: str, think_ids: Sequence[int], solution: str) -> Context:
        """Question, explanation, solution: pi_S(t | question), pi_S(s | question, t)."""
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
        """Scored tokens in front of an explanation, and those behind it; none of an empty one."""
        if not think_ids:
            return 0, []
        opened = self._tags(self._to_explanation), self._tags(self._to_thought)
        closed = self._close(think_ids, self.format.explanation_close), self.to_solution(think_ids)
        last = self._scored(self._missing_behind(think_ids), *closed)
        return self._scored(self.format.padding, *opened, end=True), closed[0][:last]

    def text_contexts(
        self, question: str, explanation: str, solution: str, teacher: Renderer | None = None
    ) -> tuple[Context, Context]:
        """Student's and teacher's context of an explanation of which only the text is known.

        `teacher`: its own renderer, of the same vocabulary; this one when empty.
        """
        think_ids = self.encode_block(explanation)
        return (
            self.student_context(question, think_ids, solution),
            (teacher or self).teacher_context(question, solution, think_ids),
        )

    # ------------------------------------------------------------ rows to train on
    def teacher_sft_row(self, question: str, solution: str, trace_text: str) -> Row:
        """Loss on what the teacher writes: trace, closing tag, end of turn."""
        trace = self.encode_block(trace_text)
        target = [*trace, *self._close(trace, self.format.explanation_close), self.end_of_turn]
        return _row(self.teacher_prompt(question, solution), target)

    def student_sft_row(self, question: str, think_ids: Sequence[int], solution: str) -> Row:
        """Loss on the whole assistant turn."""
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

    # ------------------------------------------------------------ completions, read
    def split_completion(self, ids: Sequence[int]) -> Explanation:
        """The explanation in a teacher's completion, its ids as they were sampled.

        Padding in front of the tag is left out where tokens of its own hold it. If a token holds
        both the explanation's last characters and the tag's first ones, those characters are
        encoded again at the end. Without the tag, all up to the end of turn counts.
        """
        written = self._before_stop(ids)
        return self._up_to(self.format.explanation_close, written)

    def thought_of(self, ids: Sequence[int]) -> Explanation:
        """The thought in a student's completion, its ids as they were sampled.

        It is between the first opening tag and the first closing tag behind that, as in
        `split_answer`; padding is left out where it stands right behind the opening tag, and in
        front of the closing one as in `split_completion`; no other white space is. Without an
        opening tag all from the start counts, without a closing tag all up to the end of turn.
        Text that shares a token with a tag is encoded again.
        """
        written = self._before_stop(ids)
        opened = self._opening(written)
        if opened:
            written = self.encode(opened.rest) + written[opened.after :]
        return self._up_to(self.format.thought_close, written)

    def thinking_of(self, ids: Sequence[int]) -> Thinking | None:
        """The completion up to its thought's end; None if it opens no thought. See `thought_of`."""
        written = self._before_stop(ids)
        opened = self._opening(written)
        if opened is None:
            return None
        start = opened.end - 1 if opened.rest else opened.end
        thought = self._up_to(self.format.thought_close, written[start:])
        return Thinking(written[:start] + thought.ids, start, thought.closed)

    def _opening(self, written: list[int]) -> _Found | None:
        """The first tag that opens a thought, with its padding if that is there."""
        tag = self._find(self.format.thought_open, written)
        if tag is None or not self.format.padding:
            return tag
        padded = self._find(self._to_thought, written)
        return padded if padded is not None and padded[:2] == tag[:2] else tag

    def split_answer(self, text: str) -> Answer:
        """Thought and solution of a student's completion, without surrounding white space.

        An unformatted completion still yields the last complete solution block, if it has one.
        """
        tags = (self.format.thought_open, self.format.thought_close,
                self.format.solution_open, self.format.solution_close)  # fmt: skip
        thought_open, thought_close, solution_open, solution_close = map(re.escape, tags)
        thought = f"{thought_open}(.*?){thought_close}"
        solution = f"{solution_open}(.*?){solution_close}"
        whole = re.fullmatch(rf"\s*{thought}\s*{solution}\s*", text, re.DOTALL)
        if whole and all(text.count(tag) == 1 for tag in tags):
            return Answer(True, whole[1].strip(), whole[2].strip())
        first_thought = re.search(thought, text, re.DOTALL)
        solutions: list[str] = re.findall(solution, text, re.DOTALL)
        return Answer(
            formatted=False,
            thought=first_thought[1].strip() if first_thought else None,
            solution=solutions[-1].strip() if solutions else None,
        )

    def _up_to(self, tag: str, written: list[int]) -> Explanation:
        """What stands before a closing tag, or everything."""
        found = self._find(tag, written)
        if found is None:
            return Explanation(written, self._text(written), closed=False)
        ids = self._without_padding(written[: found.before] + self.encode(found.leftover))
        return Explanation(ids, self._text(ids).removesuffix(self.format.padding), closed=True)

    def _find(self, tag: str, ids: list[int]) -> _Found | None:
        """Where a tag first stands in the decoded ids, however it was tokenised.

        A window overlaps the next by as many tokens as the tag can have; the tag is ASCII or
        complete characters, so a character cut by a window's edge cannot hide or feign it.
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
        """What the template makes of each chat, and what leads to the assistant's text."""
        tokenizer, format = self.tokenizer, self.format
        try:
            template = tokenizer.get_chat_template()
            shown = chats(template, tokenizer.special_tokens_map, format.template_date)
            return shown, shown.header(format.thought_open, format.thought_close)
        except ValueError as error:  # no template, or a bad one
            raise self._refused(str(error)) from None

    def _chat_pieces(self, system: str) -> tuple[list[int], list[int]]:
        """Ids before and after the question in a chat that ends where the assistant begins.

        Where the template has no system turns, the system prompt stands in front of the question,
        in the user's turn.
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

        Where it writes several, one of the model's EOS tokens is taken before another: some close a
        part of the turn first. Some templates close a turn only when a further one follows.
        """
        stops = self._eos_ids()
        last, earlier = (
            self._leading_controls((text or "").partition(ASSISTANT_SLOT)[2])
            for text in (self._rendered.answered, self._rendered.continued)
        )
        known = [token for token in (*last[:1], *earlier) if token in stops]
        return next(iter([*known, *last, *earlier]), self.tokenizer.eos_token_id)

    def _leading_controls(self, text: str) -> list[int]:
        """The added tokens, special or not, that a text begins with."""
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
