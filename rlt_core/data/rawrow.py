"""One row of a data source, and the checks of its texts."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from rlt_core.data.row_files import BadRow, surrogates
from rlt_core.prompts.format import PromptFormat

_STATUS = (
    r"(?:bad\ request|unauthori[sz]ed|forbidden|not\ found|too\ many\ requests|bad\ gateway|"
    r"internal\ server\ error|service\ unavailable|(?:request|gateway)\ time-?out|"
    r"(?:client|server)\ error)"
)
PROVIDER_ERROR = re.compile(
    rf"""[\s*\[<"'(]*(?:
      (?:api\ )?(?:error|exception|request\ failed)\b(?:\ (?:with|status|error|code))*
        [\s:=\-\]]*\(?(?:[45]\d\d\b|{_STATUS})
    | (?:(?:http\S*|status|code)[\s:]*)*[45]\d\d[\s:\-]+{_STATUS} | {_STATUS}[\s.!]*(?:$|\n)
    | [\w.]*(?:api|http|server|request|read|connect|client|limit|quota|auth|content|context)\w*
        (?:error|exception|exceeded|timeout)\s*(?:$|[:(\]'"])
    | \{{\s*["']error["']\s*: | error["']?\s*:\s*\{{\s*["']
    | rate\ limit\ (?:reached|exceeded) | (?:the\ )?request\ timed\ out
    | connection\ (?:error|reset|refused|aborted)[\s.]*(?:$|by\b|\()
    | upstream\ (?:connect\ error|request\ timeout) | you\ exceeded\ your\ current\ quota
    | this\ model's\ maximum\ context\ length
    | the\ (?:server|engine|model)\ is\ (?:currently\ )?overloaded
    | (?:!doctype\ html|html)[^<]*(?:<(?:head|meta)[^>]*>\s*)*<title>\s*[45]\d\d
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""Beginning of a reply that is an HTTP client's or provider's error instead of a model's text."""
ERROR_CHARS = 4000
"""A longer text is not an error message."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A question with what its source provides."""

    row: int
    """1-based row of the source (in a JSONL file the line)."""
    question: str
    solution: str
    trace: str | None = None
    answer: str | None = None
    grader: str | None = None
    """Set by generators; None means mathematics if there is an answer."""
    metadata: str | None = None
    """JSON for the grader."""
    licence: str | None = None
    system: str | None = None
    """System prompt that the data set has for its student."""
    prompt_tokens: int = 0
    """Length of the teacher's prompt, once it is measured."""


def normalised(question: str) -> str:
    """Return the normal form of a question: NFKC, case-folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def question_id(question: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of the normalised question."""
    return hashlib.sha256(normalised(question).encode()).hexdigest()[:16]


def question_row(row: RawRow, split: str, source: str) -> dict[str, Any]:
    return {
        "question_id": question_id(row.question),
        "split": split,
        "question": row.question,
        "solution": row.solution,
        "answer": row.answer,
        "trace": row.trace,
        "grader": row.grader or ("none" if row.answer is None else "math"),
        "metadata": row.metadata,
        "source": source,
        "system": row.system,
        "licence": row.licence,
        "prompt_tokens": row.prompt_tokens,
    }


def dropped_row(row: int, reason: str, detail: str, question: str | None = None) -> dict[str, Any]:
    key = None if question is None else question_id(question)
    return {"row": row, "question_id": key, "reason": reason, "detail": detail}


def require_text(text: str, what: str) -> str:
    """Return the text if it can be encoded as UTF-8. Raises BadRow."""
    for code in surrogates(text):
        if code >= 0xDC80 and code <= 0xDCFF:
            fault = f"byte 0x{code & 0xFF:02x}, which is not UTF-8; save the file as UTF-8"
        else:
            fault = f"the lone surrogate \\u{code:04x}; write the whole character or remove it"
        raise BadRow("unreadable", f"the {what} has {fault}")
    return text


def require_written(row: RawRow, format: PromptFormat) -> None:
    """Raise BadRow if a text contains one of the format's tags, or is a provider's error message
    instead of a model's text."""
    for field in ("question", "solution", "trace"):
        text = getattr(row, field) or ""
        tag = next((tag for tag in format.tags if tag in text), None)
        if tag:
            raise BadRow(
                "tags",
                f"the {field} contains {tag}, a tag of the prompt format {format.name}; remove the "
                "tag or choose another prompt_format",
            )
        require_no_error(text, field)


def require_no_error(text: str, what: str) -> None:
    """Raise BadRow if a text is the error message of a provider."""
    if what != "question" and len(text) <= ERROR_CHARS and PROVIDER_ERROR.match(text):
        shown = " ".join(text.split())[:60]
        raise BadRow(
            "provider_error",
            f"the {what} is a provider's error message ({shown}); ask again or remove the row",
        )
