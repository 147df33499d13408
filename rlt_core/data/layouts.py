"""Which columns of a data set to read: as configured, or by one of the common layouts."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.rawrow import RawRow, require_no_error, require_text
from rlt_core.data.row_files import BadRow, NumberText, Record, checked, in_cell, kind_of, value_of

CHATS = ("conversations", "messages", "conversation")
"""Columns with a list of turns: ShareGPT's {from, value}, OpenAI's {role, content}."""
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant",
}  # fmt: skip
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Providers' names for the field of an assistant's turn with its thought."""
TAGGED = {
    ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"):
        r"\s*<\|begin_of_thought\|>(.*)<\|end_of_thought\|>"
        r"\s*<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*",
    ("<think>", "</think>"): r"\s*<think>(.*)</think>(.*)",
}  # fmt: skip
"""Tags around thought and solution in a reply (Bespoke-Stratos-17k and Sky-T1; DeepSeek-R1)."""
SYSTEM = "system"
LAYOUTS = (
    ("problem", "answer", True), ("problem", "solution", False),
    ("prompt", "reward_model.ground_truth", True),  # verl's
    ("instruction", "output", False), ("instruction", "response", False),  # Alpaca's, Dolly's
    ("prompt", "completion", False),  # TRL's, as texts or as turns
)  # fmt: skip
"""Columns of the question and, unless another has the solution, of that; whether it is the answer,
too."""
MORE = {"instruction": ("input", "context")}
"""Columns of what may follow a question."""
TURNS_IN_CELL = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
"""Beginning of a CSV file's cell with a list of turns."""
Turns = Literal["one", "last"]


@dataclass(frozen=True)
class Layout:
    """Where to find a row's question, solution, trace and answer."""

    fields: FieldMapping
    chat: str | None = None
    """Column with the conversation that has question and solution."""
    tagged: bool = False
    """Whether a reply has a thought and a solution."""
    found: str | None = None
    """Description of a layout that was not configured but recognised."""
    more: tuple[str, ...] = ()
    """Columns whose text follows that of the question, in rows that have it."""
    columns: frozenset[str] = frozenset()
    """Columns of the first rows; a row without its answer has none."""


@dataclass(frozen=True)
class Exchange:
    question: str
    reply: str = ""
    thought: str | None = None
    """A thought that is not part of the reply."""
    system: str | None = None


def layout_of(data: DataConfig, heads: Sequence[Record]) -> Layout:
    """Return the layout of a data set from its first rows. A configured layout is used as it is;
    otherwise the columns tell, if those in `data.fields` are missing."""
    fields, names = data.fields, _names(heads)
    chat = next((name for name in CHATS if name in names), None)
    if data.conversations:
        return Layout(fields, chat or CHATS[0], tagged=True)
    free = FieldMapping()
    configured = (fields.question, fields.solution) != (free.question, free.solution)
    if configured or free.question in names:
        return Layout(fields)
    for question, reply, is_answer in LAYOUTS:
        if question in names and reply.partition(".")[0] in names:
            solution = fields.solution if fields.solution in names else reply
            answer = fields.answer or (reply if is_answer else None)
            own = {"question": question, "solution": solution, "answer": answer}
            found = ", ".join(f"{field} from {column!r}" for field, column in own.items() if column)
            more = MORE.get(question, ())
            return Layout(fields.model_copy(update=own), more=more, found=found)
    if chat is None:
        return Layout(fields)
    own_trace = fields.trace not in (None, chat)
    tagged = not own_trace and (fields.trace is not None or _are_tagged(heads, chat, data.turns))
    parts = "trace and solution from" if tagged else "solution from"
    return Layout(
        fields if own_trace else fields.model_copy(update={"trace": None}),
        chat,
        tagged,
        f"column {chat!r} read as a conversation: question from the user's turn, {parts} the reply",
    )


def _names(heads: Sequence[Record]) -> set[str]:
    """Return the columns that most rows have."""
    every = [set(map(str, head)) for head in heads]
    return {
        name for name in set().union(*every) if 2 * sum(name in one for one in every) > len(every)
    }


def _are_tagged(heads: Sequence[Record], chat: str, turns: Turns) -> bool:
    """Return whether most rows have a thought beside their solution."""
    found = []
    for head in heads:
        try:
            pair = checked(lambda head=head: exchange(head.get(chat), turns))  # type: ignore[misc]
        except BadRow:
            continue
        tagged = any(tag in pair.reply for tags in TAGGED for tag in tags)
        found.append(tagged or pair.thought is not None)
    return 2 * sum(found) > len(found)


# ---------------------------------------------------------------- rows
def row_of(
    number: int, record: Record, layout: Layout, data: DataConfig, licence: str | None = None
) -> RawRow:
    """Return a row of a data set. Raises BadRow."""
    fields, trace = layout.fields, None
    value = partial(_field, record)
    if layout.chat:
        pair = exchange(value("question", layout.chat), data.turns)
        question, trace, solutions = pair.question, pair.thought, [pair.reply]
        if layout.tagged and trace is None:
            trace, solution = _thought_and_solution(pair.reply)
            solutions = [solution]
        elif any(tag in pair.reply for tags in TAGGED for tag in tags):
            raise BadRow("tags", "the reply has tags of a thought, which other rows do not have")
    else:
        pair = _question(value("question", fields.question), data.turns, fields.question)
        more = [
            text
            for name in layout.more
            if name in record
            for text in scalar(value_of(record, name), "question", name)
        ]
        question = "\n\n".join([pair.question, *more])
        name = "answer" if fields.solution == fields.answer else "solution"
        solutions = _texts(value("solution", fields.solution), name, fields.solution)
        solutions = solutions or [_filled("", "solution", fields.solution)]
    if data.split_at is not None:
        trace, solutions = _split(solutions[0], data.split_at, fields.solution)
    elif fields.trace is not None and not data.conversations:
        lines = _texts(value("trace", fields.trace), "trace", fields.trace)
        trace = "\n".join(lines)  # a list is a trace in steps (s1K)
    answers = solutions if len(solutions) > 1 else []
    if fields.answer and (fields.answer in record or fields.answer not in layout.columns):
        given = value("answer", fields.answer)
        answers = [] if given is None else _texts(given, "answer", fields.answer)
    if fields.licence:
        licence = value("licence", fields.licence) or licence
    system = pair.system
    if fields.system:
        system = value("system", fields.system)
    elif system is None and SYSTEM in record:
        system = value_of(record, SYSTEM)
    return RawRow(
        number,
        require_text(question, "question"),
        require_text(solutions[0], "solution"),
        trace and require_text(trace, "trace"),
        require_text(answers[0], "answer") if answers else None,
        metadata=json.dumps({"accepted": answers}) if len(answers) > 1 else None,
        licence=licence and str(licence),
        system=system and require_text(str(system), "system prompt"),
    )


def _field(record: Record, name: str, column: str) -> Any:
    try:
        return value_of(record, column)
    except KeyError:
        pass
    near = get_close_matches(column, map(str, record), n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    has = ", ".join(map(str, record)) or "none"
    raise BadRow(
        "missing",
        f"no field {column!r} (it has {has}){hint} Set data.fields.{name} to the field that holds "
        f"the {name}; in a trace file, rename it.",
    )


def _question(value: Any, turns: Turns, column: str) -> Exchange:
    """Read a text, or the turns of a prompt (verl)."""
    if isinstance(value, list) or (isinstance(value, str) and TURNS_IN_CELL.match(value)):
        return exchange(value, turns, replied=False)
    if isinstance(value, NumberText) or not isinstance(value, str | None):
        raise BadRow("unreadable", f"the question (field {column!r}) is {kind_of(value)}, not text")
    return Exchange(_filled(value, "question", column))


def _texts(value: Any, name: str, column: str) -> list[str]:
    """Read one text, or the texts of a list: accepted answers, steps of a trace. A number counts as
    text, and a list may be written as JSON."""
    if name == "answer" and isinstance(value, str) and value.startswith(('["', "['")):
        value = in_cell(value)
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], Mapping) and _role(value[0]) == "assistant":
            value = [_content(value[0])]
        texts = [text for item in value for text in scalar(item, name, column)]
    else:
        texts = scalar(value, name, column)
    if name == "trace":
        return [_filled("\n".join(texts), name, column)]
    kept = [text.strip() for text in dict.fromkeys(texts) if text.strip()]
    return kept if kept or name == "answer" else [_filled("", name, column)]


def scalar(value: Any, name: str, column: str) -> list[str]:
    """Return a text, or a number as one, in a list; nothing for a missing value. Raises BadRow."""
    value = value_of({"": value}, "")
    if value is None:
        return []
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (is_number and name != "trace") or (isinstance(value, bool) and name == "answer"):
        return [str(value)]
    if name != "trace" and isinstance(value, Decimal):
        return [format(value, "f")]
    if not isinstance(value, str) or (name == "trace" and isinstance(value, NumberText)):
        fix = (
            f"name a field in it, {column}.NAME" if isinstance(value, Mapping) else "remove the row"
        )
        raise BadRow(
            "unreadable", f"the {name} (field {column!r}) is {kind_of(value)}, not text; {fix}"
        )
    return [value]


def _filled(text: str | None, name: str, column: str) -> str:
    """Return the text without surrounding white space. Raises BadRow if it is empty."""
    if text is None or not text.strip():
        raise BadRow(
            "empty", f"the {name} (field {column!r}) is empty; fill it in or remove the row"
        )
    return text.strip()


def _split(text: str, marker: str, column: str) -> tuple[str | None, list[str]]:
    """Return trace and solution around the last marker; the trace may be missing."""
    trace, found, solution = text.rpartition(marker)
    if not found or not solution.strip():
        raise BadRow(
            "empty", f"field {column!r} has no solution after the marker {marker!r} (data.split_at)"
        )
    return trace.strip() or None, [solution.strip()]


# ---------------------------------------------------------------- conversations
def exchange(value: Any, turns: Turns, replied: bool = True) -> Exchange:
    """Return the question of a conversation and, if `replied`, its reply; with `turns` = last those
    of the last exchange. Raises BadRow."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = in_cell(value)
    if isinstance(value, Mapping):  # a `Sequence` of the datasets library
        lists = [each for each in value.values() if isinstance(each, list)]
        if len(lists) == len(value) and len(set(map(len, lists))) == 1:
            rows = zip(*lists, strict=True)
            value = [dict(zip(value, row, strict=True)) for row in rows]
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise BadRow(
            "turns", "a conversation must be a list of {from, value} or {role, content} turns"
        )
    roles = [_role(turn) for turn in value]
    system = _content(value[0]) if roles[:1] == ["system"] else None
    first = 1 if system is not None else 0
    length = 2 if replied else 1
    if turns == "last" and len(value) - first > length:
        first = len(value) - length
    if roles[first:] != ["user", "assistant"][:length]:
        pairs = roles.count("user")
        raise BadRow(
            "turns",
            f"the conversation has {pairs} exchanges; keep one, or take the last one of every row "
            "(data.turns=last)"
            if pairs > 1 and turns == "one"
            else "the turns must be the user's question" + " and the assistant's reply" * replied,
        )
    question = _filled(_content(value[first]), "question", "user's turn")
    if not replied:
        return Exchange(question, system=system)
    reply = value[-1]
    thought = next((text for name in THOUGHTS if (text := reply.get(name))), None)
    answer = _filled(_content(reply), "reply", "assistant's turn")
    require_no_error(answer, "reply")
    return Exchange(question, answer, thought, system)


def _role(turn: Record) -> str:
    role = turn.get("role") or turn.get("from")
    known = ROLES.get(str(role).casefold())
    if known is None:
        whose = f"from {role!r}" if role else "without `role` or `from`"
        raise BadRow(
            "turns", f"a turn is {whose}, not from a user, assistant or system; remove the row"
        )
    return known


def _content(turn: Record) -> str:
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):  # OpenAI's parts
        content = "\n".join(map(_part, content))
    if not isinstance(content, str | None):
        raise BadRow("turns", f"a turn holds {kind_of(content)}, not text")
    return content or ""


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
    text = part.get("text") if isinstance(part, Mapping) and kind == "text" else part
    if not isinstance(text, str):
        raise BadRow("turns", f"a turn has a part of type {kind!r}; only text can be read")
    return text


def _thought_and_solution(reply: str) -> tuple[str, str]:
    for tags, pattern in TAGGED.items():
        if any(tag in reply for tag in tags):
            parts = re.fullmatch(pattern, reply, re.DOTALL)
            if parts is None or any(reply.count(tag) != 1 for tag in tags):
                break
            if not (parts[1].strip() and parts[2].strip()):
                raise BadRow("empty", "the thought or the solution of the reply is empty")
            return parts[1].strip(), parts[2].strip()
    forms = " or ".join("…".join(tags) for tags in TAGGED)
    raise BadRow(
        "tags",
        f"expected a question, and a reply of the form {forms}, with exactly one thought and one "
        "solution, none of them empty",
    )
