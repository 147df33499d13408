"""Sizes of data that is not in the store yet: counted in a file, published, or assumed."""

from pathlib import Path

from rlt_core.config import DataConfig
from rlt_core.data.row_files import count_rows
from rlt_core.data.sources import GENERATED, found_layout
from rlt_core.stages.cost import Questions

ROWS = {
    "hub:bespokelabs/Bespoke-Stratos-17k": 16_710,
    "hub:GAIR/LIMR": 1_389,
    "hub:simplescaling/s1K": 1_000,
    "hub:NovaSky-AI/Sky-T1_data_17k": 16_401,
}
"""Rows of published data sets, as their cards say: https://huggingface.co/datasets/<name>."""
UNKNOWN_ROWS = 1000
LONGEST = 4096
"""Tokens of the longest question and solution together, before they are counted."""
QUESTION, SOLUTION, TRACE, COMPLETION = 150, 400, 4500, 3000
"""Tokens of a text before they are counted: a data set's own traces are long thoughts of R1 and the
like; a model's completion has half of its limit where that is less."""
OF_GENERATED = (30, 10, 50)
"""Tokens of generated questions, solutions and traces, one per character."""


def expected_questions(data: DataConfig, path: str | None) -> Questions:
    """Questions of a data set that is not prepared yet; `path`: its file, if it is one."""
    question, solution, trace = (
        OF_GENERATED if data.source in GENERATED else (QUESTION, SOLUTION, TRACE)
    )
    half = data.max_prompt_tokens / 4
    rows = count_rows(Path(path)) if path else ROWS.get(data.source, UNKNOWN_ROWS)
    taken = data.n_validation + (0 if data.test_source else data.n_test)
    train = left = max(1, rows - taken)
    if data.n_train:
        counted = path or data.source.startswith("hub:")
        train = min(data.n_train, left) if counted else data.n_train
    traced = not path or bool(data.fields.trace or data.split_at or data.conversations)
    if path and not traced:
        traced = "trace" in (found_layout(data.replaced(source=path)) or "")
    return Questions(
        train, data.n_validation, data.n_test,
        min(question, half), min(solution, half), trace,
        with_trace=train if traced else 0, longest=LONGEST,
    )  # fmt: skip
