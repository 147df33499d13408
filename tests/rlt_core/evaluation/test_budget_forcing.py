"""Thinking is as long as the budget says, whatever the model writes and however it is tokenised."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rlt_core.config import BudgetForcing, EvaluationConfig, Sampling, ScratchModel, StageResources
from rlt_core.control import Control
from rlt_core.errors import Stopped
from rlt_core.evaluation.budget import Draft, Forcer
from rlt_core.evaluation.completions import Completer, Request, Written
from rlt_core.evaluation.run import Examination
from rlt_core.evaluation.tasks import EvalTask
from rlt_core.formats import load_format
from rlt_core.generation import Completion, open_engine, sample_seed
from rlt_core.generation.engine import ClosesItself, FinishReason
from rlt_core.models import CHATML, new_model, save_model, tiny_tokenizer
from rlt_core.prompts import Prompter

TINY, RLT, R1 = load_format("tiny"), load_format("rlt"), load_format("r1")
KEY = "0123456789abcdef"
# Over the edges of tags: what stands before them, inside them, and the line's end behind them.
MERGES = [
    (">", "Ċ"), ("2", "<"), (".", "<"), ("Ċ", "Ċ"), ("<", "|"), ("|", ">"),
    ("1", "2<"), ("e", "n"), ("en", "d"), ("_", "o"), ("_o", "f"), ("<|", "end"), ("W", "a"),
]  # fmt: skip


def merging_tokenizer() -> PreTrainedTokenizerFast:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    backend = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


CHARACTERS = Prompter(TINY, tiny_tokenizer(TINY))
MERGING = Prompter(RLT, merging_tokenizer())
MERGING_R1 = Prompter(R1, merging_tokenizer())
PROMPTERS = pytest.mark.parametrize("prompter", [CHARACTERS, MERGING, MERGING_R1])
quick = settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)

PIECES = ["12", ". ", "<", ">", "\n\n", "é", "😀", "Wa", "{open}", "{close}", "{answer}", "{end}"]
phase = st.tuples(
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=10).map("".join),
    st.booleans(),
)
"""What a model writes if it is not stopped, and whether it then ends its turn."""
phases = st.lists(phase, min_size=1, max_size=8)
budgets = st.builds(
    BudgetForcing,
    max_thinking_tokens=st.integers(1, 12) | st.none(),
    continuations=st.integers(1, 3),
    continuation=st.sampled_from(["Wait", "<", "é, "]),
)


def spelled(prompter: Prompter, text: str) -> list[int]:
    """A text with names of tags, tokenised as one string: merges may cross the tags' edges."""
    f = prompter.format
    names = {"open": f.thought_open, "close": f.thought_close, "end": f.solution_close,
             "answer": f.solution_open}  # fmt: skip
    for name, tag in names.items():
        text = text.replace(f"{{{name}}}", tag)
    return prompter.encode(text)


def forced(
    forcer: Forcer, writes: Iterable[tuple[Sequence[int], bool]], context: int = 10_000
) -> tuple[Draft, list[Draft]]:
    """A finished draft, and it after each phase. A model whose turn does not end writes spaces for
    ever, one with nothing left to write ends it; an engine whose context is full ends with
    `length`."""
    seen: list[Draft] = []
    draft, left = forcer.first(), iter(writes)
    end, space = forcer.prompter.end_of_turn, forcer.prompter.encode(" ")
    while draft.room:
        assert len(seen) < 20
        tokens, ends = next(left, ([], True))
        endless = [*tokens, end] if ends else [*tokens, *space * draft.room]
        sampled = endless[: max(0, min(draft.room, context - len(draft.ids)))]
        draft = forcer.after(draft, sampled, "stop" if sampled[-1:] == [end] else "length")
        seen.append(draft)
    return draft, seen


def undisturbed(forcer: Forcer, ids: Sequence[int]) -> Draft:
    """The draft of a model that writes these ids, whatever was forced on it; then spaces."""
    draft, space = forcer.first(), forcer.prompter.encode(" ")
    while draft.room:
        left = ids[len(draft.ids) :] or space * draft.room
        sampled = left[: draft.room]
        stopped = sampled[-1] == forcer.prompter.end_of_turn
        draft = forcer.after(draft, sampled, "stop" if stopped else "length")
    return draft


# ---------------------------------------------------------------- what a phase leads to
@PROMPTERS
@quick
@given(
    opening=st.sampled_from(["", "{open}"]), phases=phases, budget=budgets,
    max_tokens=st.integers(1, 120), context=st.integers(10, 200),
)  # fmt: skip
def test_no_limit_is_exceeded_whatever_is_written(
    prompter: Prompter, opening: str, phases: list[tuple[str, bool]], budget: BudgetForcing,
    max_tokens: int, context: int,
) -> None:  # fmt: skip
    (first, ended), *rest = phases
    texts = [(opening + first, ended), *rest]
    writes = [(spelled(prompter, text), ends) for text, ends in texts]
    draft, _ = forced(Forcer(prompter, budget, max_tokens), writes, context)
    assert 0 < len(draft.ids) <= max_tokens
    assert draft.continuations <= budget.continuations
    stopped = draft.ids[-1] == prompter.end_of_turn
    assert draft.finish_reason == ("stop" if stopped else "length")
    assert all(token not in prompter.stop_ids for token in draft.ids[:-1])
    thinking = prompter.thinking_of(draft.ids)
    if thinking and budget.max_thinking_tokens:
        over = len(thinking.ids) - thinking.start - budget.max_thinking_tokens
        # At most a forced closing tag that `max_tokens` broke off.
        broken = thinking.ids[len(thinking.ids) - over :] if over > 0 else []
        assert broken == prompter.to_solution[: len(broken)]
        assert not broken or len(draft.ids) == max_tokens


@PROMPTERS
@quick
@given(texts=st.lists(st.text(max_size=20), min_size=4, max_size=4), ends=st.booleans())
def test_each_end_of_thinking_is_taken_back_until_none_is_left(
    prompter: Prompter, texts: list[str], ends: bool
) -> None:
    f = prompter.format
    if any(tag in text for tag in f.tags for text in texts):
        return
    forcer = Forcer(prompter, BudgetForcing(continuations=3, continuation="Wait"), 10_000)
    closing = "" if ends else "{close}{answer}4{end}"  # the turn may end without the tag
    writes = [(spelled(prompter, text + closing), True) for text in texts[:3]]
    writes[0] = (spelled(prompter, "{open}" + texts[0] + closing), True)
    writes.append((spelled(prompter, texts[3] + "{close}{answer}4{end}"), True))
    draft, seen = forced(forcer, writes)
    assert [each.continuations for each in seen] == [1, 2, 3, 3]
    answer = f"{f.thought_close}{f.solution_open}4{f.solution_close}"
    assert prompter.decode(draft.ids) == f.thought_open + "Wait".join(texts) + answer
    assert draft.finish_reason == "stop"


def test_a_token_that_holds_the_closing_tags_first_character_is_split() -> None:
    ids = spelled(MERGING, "{open}12{close}")
    assert "12<" in map(MERGING.tokenizer.decode, ids)
    draft, _ = forced(Forcer(MERGING, BudgetForcing(continuations=1), 1000), [(ids, True)])
    assert MERGING.decode(draft.ids) == f"{RLT.thought_open}12Wait"


def test_a_token_that_holds_the_opening_tags_end_counts_as_thinking() -> None:
    ids = spelled(MERGING, "{open}\n" + "a" * 50)
    assert ">\n" in map(MERGING.tokenizer.decode, ids)
    for limit, kept in ((1, "\n"), (2, "\na")):
        forcer = Forcer(MERGING, BudgetForcing(max_thinking_tokens=limit), 1000)
        text = MERGING.decode(undisturbed(forcer, ids).ids)
        assert text.startswith(f"{RLT.thought_open}{kept}{RLT.thought_close}")


@PROMPTERS
@pytest.mark.parametrize("limit", [1, 2, 7, 30])
@pytest.mark.parametrize("before", ["", "Sure: "])
def test_long_thinking_is_cut_and_answered(prompter: Prompter, limit: int, before: str) -> None:
    f = prompter.format
    budget = BudgetForcing(max_thinking_tokens=limit, continuations=2)
    writes = spelled(prompter, before + "{open}" + f.think_prefix + "abcd" * 40)
    forcer = Forcer(prompter, budget, 1000)
    assert forcer.first().room < len(writes)  # no need to draw all of it
    answer = (prompter.encode("42" + f.solution_close), True)
    draft, _ = forced(forcer, [(writes, False), answer])
    thinking = prompter.thinking_of(draft.ids)
    assert thinking and thinking.closed
    assert thinking.ids == writes[: thinking.start + limit]
    read = prompter.split_answer(prompter.decode(draft.ids))
    assert (read.solution, read.formatted) == ("42", not before)
    assert draft.finish_reason == "stop" and draft.continuations == 0


@PROMPTERS
@pytest.mark.parametrize("written", [9, 10, 11])
@pytest.mark.parametrize("closes", [True, False])
def test_the_limit_is_the_last_length_that_is_left_alone(
    prompter: Prompter, written: int, closes: bool
) -> None:
    tag = prompter.encode(prompter.format.thought_open)
    end = spelled(prompter, "{close}{answer}4{end}") if closes else []
    ids = [*tag, *prompter.encode("a" * written), *end, prompter.end_of_turn]
    draft = undisturbed(Forcer(prompter, BudgetForcing(max_thinking_tokens=10), 100), ids)
    if written < 10 or (written == 10 and closes):
        assert (draft.ids, draft.finish_reason) == (ids, "stop")
    else:
        cut = [*ids[: len(tag) + 10], *prompter.to_solution]
        assert draft.ids[: len(cut)] == cut and draft.answering


@PROMPTERS
def test_an_end_stands_if_the_limits_leave_no_room_to_think_on(prompter: Prompter) -> None:
    thought = prompter.encode("a" * 10)
    tag = prompter.encode(prompter.format.thought_open)
    more = prompter.encode("Wait, ") * 10  # longer than what it replaces
    ids = [*tag, *thought, *spelled(prompter, "{close}{answer}4{end}")]
    for limit, max_tokens, continued in (
        (10 + len(more), 1000, 0), (11 + len(more), 1000, 1),
        (None, len(tag) + 10 + len(more) + 1, 1), (None, len(tag) + 10 + len(more), 0),
    ):  # fmt: skip
        budget = BudgetForcing(
            max_thinking_tokens=limit, continuations=5, continuation="Wait, " * 10
        )
        _, seen = forced(Forcer(prompter, budget, max_tokens), [(ids, True), ([], True)])
        assert seen[0].continuations == continued


@PROMPTERS
@quick
@given(text=st.text(max_size=200), ends=st.booleans(), budget=budgets)
def test_without_a_thought_nothing_is_forced(
    prompter: Prompter, text: str, ends: bool, budget: BudgetForcing
) -> None:
    if prompter.format.thought_open in text:
        return
    ids = prompter.encode(text)
    written = [*ids, *([prompter.end_of_turn] if ends else prompter.encode(" ") * 300)]
    assert undisturbed(Forcer(prompter, budget, 300), written).ids == written[:300]


def test_more_than_the_room_is_as_if_the_engine_had_left_off_there() -> None:
    forcer = Forcer(CHARACTERS, BudgetForcing(max_thinking_tokens=5), 100)
    first = forcer.first()
    for text in ("{open}abcdefghi" * 9, "{open}abc{close}{answer}4{end}" + "a" * 50, "a" * 99):
        ids = spelled(CHARACTERS, text)
        assert len(ids) > first.room
        whole = forcer.after(first, ids, "stop")
        assert whole == forcer.after(first, ids[: first.room], "length")


def test_a_full_context_ends_the_completion() -> None:
    """An engine that stops short of the room has no place for anything more."""
    forcer = Forcer(CHARACTERS, BudgetForcing(max_thinking_tokens=5, continuations=1), 100)
    first = forcer.first()
    for text, kept in (("{open}ab", "{open}ab"), ("ab", "ab"), ("{open}abcdefg", "{open}abcde")):
        draft = forcer.after(first, spelled(CHARACTERS, text), "length")
        assert draft == Draft(spelled(CHARACTERS, kept), room=0, finish_reason="length")


# ---------------------------------------------------------------- with an engine
Reply = Callable[[str, np.random.Generator], str]
"""What a model writes after what it has written, if nothing stops it. Its turn then ends."""


class ScriptedEngine(ClosesItself):
    """Writes what a function says: a completion depends on its prompt and its seed."""

    def __init__(self, prompter: Prompter, reply: Reply) -> None:
        self.prompter, self.reply = prompter, reply
        self.seeds: list[list[int]] = []
        """Of each call."""
        self.max_tokens: list[int] = []
        self.context = 10_000

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        stop_ids: Iterable[int],
        control: Control | None = None,
    ) -> list[list[Completion]]:
        control = control or Control()
        control.check()
        self.seeds.append([seed for each in seeds for seed in each])
        self.max_tokens.append(sampling.max_tokens)
        drawn = [
            [self._completion(prompt, seed, sampling.max_tokens) for seed in each]
            for prompt, each in zip(prompts, seeds, strict=True)
        ]
        control.progress(len(self.seeds[-1]), len(self.seeds[-1]), {})
        return drawn

    def _completion(self, prompt: Sequence[int], seed: int, max_tokens: int) -> Completion:
        turn = self.prompter.tokenizer.decode(list(prompt)).rpartition("assistant\n")[2]
        text = self.reply(turn, np.random.default_rng(seed))
        assert len(prompt) < self.context
        room = min(max_tokens, self.context - len(prompt))
        ids = [*spelled(self.prompter, text), self.prompter.end_of_turn][:room]
        reason: FinishReason = "stop" if ids[-1] == self.prompter.end_of_turn else "length"
        return Completion(ids, reason, None)


def quick_thinker(turn: str, rng: np.random.Generator) -> str:
    """Closes its thought at once, each time."""
    number = str(rng.integers(1000))
    if "{open}" not in turn:
        return f"{{open}}{number}{{close}}{{answer}}{number}{{end}}"
    return f"{number}{{close}}{{answer}}{number}{{end}}"


def slow_thinker(turn: str, rng: np.random.Generator) -> str:
    """Never closes its thought; answers once that was done for it."""
    if "{answer}" in turn:
        return f"{rng.integers(1000)}{{end}}"
    opening = "" if "{open}" in turn else "{open}"
    return opening + "".join(str(digit) for digit in rng.integers(10, size=5000))


def any_thinker(turn: str, rng: np.random.Generator) -> str:
    """Any of these, or one that never heard of thoughts, or that ends its turn in one."""
    kinds: list[Reply] = [
        quick_thinker, slow_thinker, lambda *_: "4", lambda t, r: quick_thinker(t, r)[:9],
    ]  # fmt: skip
    return kinds[rng.integers(len(kinds))](turn, rng)


def named(prompter: Prompter, reply: Reply) -> Reply:
    """The reply of a model that reads tags by name."""
    thought, solution = prompter.format.thought_open, prompter.format.solution_open
    return lambda turn, rng: reply(
        turn.replace(thought, "{open}").replace(solution, "{answer}"), rng
    )


Completed = list[list[Written]]


def complete(
    engine: ScriptedEngine,
    budget: BudgetForcing | None,
    asked: Sequence[Request],
    max_tokens: int = 200,
    control: Control | None = None,
) -> Completed:
    config = EvaluationConfig(n=3, max_tokens=max_tokens)
    forcer = Forcer(engine.prompter, budget, max_tokens) if budget else None
    completer = Completer(engine, config, engine.prompter.stop_ids, KEY, forcer)
    return completer.complete(asked, control or Control())


def requests(prompter: Prompter, count: int = 5) -> list[Request]:
    return [
        Request("test", {"question_id": f"q{i}"}, prompter.student_prompt(f"{i}+{i}?"), range(3))
        for i in range(count)
    ]


def texts(prompter: Prompter, completed: Completed) -> list[str]:
    return [prompter.decode(one.ids) for group in completed for one in group]


@PROMPTERS
def test_a_model_that_closes_at_once_thinks_on_as_often_as_it_is_told(
    prompter: Prompter,
) -> None:
    engine = ScriptedEngine(prompter, named(prompter, quick_thinker))
    budget = BudgetForcing(continuations=4, continuation="Wait")
    completed = complete(engine, budget, requests(prompter))
    for text in texts(prompter, completed):
        answer = prompter.split_answer(text)
        assert answer.formatted and answer.thought and answer.solution
        numbers = answer.thought.split("Wait")
        assert len(numbers) == 5 and all(number.isdigit() for number in numbers)
        assert numbers[-1] == answer.solution  # of the last phase: earlier answers are gone
        assert len(set(numbers)) > 1  # every phase has a seed of its own
    assert len(engine.seeds) == 5  # phases
    every = [seed for call in engine.seeds for seed in call]
    assert len(set(every)) == len(every) == 5 * 15


@PROMPTERS
def test_a_model_that_does_not_close_is_cut_and_answers(prompter: Prompter) -> None:
    engine = ScriptedEngine(prompter, named(prompter, slow_thinker))
    budget = BudgetForcing(max_thinking_tokens=20, continuations=2)
    completed = complete(engine, budget, requests(prompter))
    for one in [one for group in completed for one in group]:
        answer = prompter.split_answer(prompter.decode(one.ids))
        assert answer.formatted and answer.solution and one.finish_reason == "stop"
        assert answer.thought and len(answer.thought) == 20  # digits are a token each
        assert len(prompter.thought_of(one.ids).ids) == 20
    assert len(engine.max_tokens) == 2 and engine.max_tokens[0] < 100


@PROMPTERS
def test_two_runs_end_the_same_whatever_is_asked_beside(prompter: Prompter) -> None:
    budget = BudgetForcing(max_thinking_tokens=20, continuations=2)
    asked = requests(prompter)
    reply = named(prompter, any_thinker)
    engine = ScriptedEngine(prompter, reply)
    whole = complete(engine, budget, asked)
    assert len(engine.seeds) > 2
    assert complete(ScriptedEngine(prompter, reply), budget, asked) == whole
    pieces = [replace(one, samples=range(i, i + 1)) for one in asked for i in range(3)]
    for shard in (pieces[1:2], pieces[4:9], pieces):
        drawn = complete(ScriptedEngine(prompter, reply), budget, shard)
        flat = [one for group in whole for one in group]
        assert [group[0] for group in drawn] == [flat[pieces.index(one)] for one in shard]
    for enough in range(len(engine.seeds)):
        engine = ScriptedEngine(prompter, reply)
        control = Control(should_stop=lambda e=engine, n=enough: len(e.seeds) >= n)  # type: ignore[misc]
        with pytest.raises(Stopped):
            complete(engine, budget, asked, control=control)


def test_progress_counts_what_is_finished() -> None:
    seen: list[tuple[int, int]] = []
    control = Control(lambda done, total, _: seen.append((done, total)))
    engine = ScriptedEngine(CHARACTERS, named(CHARACTERS, any_thinker))
    budget = BudgetForcing(max_thinking_tokens=20, continuations=2)
    complete(engine, budget, requests(CHARACTERS), control=control)
    assert seen == sorted(seen) and seen[0] == (0, 15) and 0 < seen[-1][0] < 15


@pytest.mark.parametrize("max_tokens", [1, 10, 22, 23, 24, 40])
def test_max_tokens_bounds_the_whole_completion(max_tokens: int) -> None:
    budget = BudgetForcing(max_thinking_tokens=20, continuations=9)
    for reply in (slow_thinker, quick_thinker):
        engine = ScriptedEngine(CHARACTERS, named(CHARACTERS, reply))
        for group in complete(engine, budget, requests(CHARACTERS), max_tokens):
            for one in group:
                assert len(one.ids) <= max_tokens
                assert one.finish_reason == "stop" or len(one.ids) == max_tokens


@pytest.mark.parametrize("room", [0, 1, 10, 21, 22, 23, 24, 26, 40])
def test_the_context_bounds_the_whole_completion_with_what_is_forced(room: int) -> None:
    """An engine refuses a prompt that fills it."""
    budget = BudgetForcing(max_thinking_tokens=20, continuations=9, continuation="Wait" * 3)
    [request] = requests(CHARACTERS, 1)
    for reply in (slow_thinker, quick_thinker):
        engine = ScriptedEngine(CHARACTERS, named(CHARACTERS, reply))
        engine.context = len(request.prompt_ids) + room
        [group] = complete(engine, budget, [request])
        for one in group:
            assert len(one.ids) <= room
            if room:
                assert one.finish_reason == "stop" or len(one.ids) >= min(room, 21)
            else:
                assert one == Written([], "too_long")


@PROMPTERS
def test_without_a_budget_the_engine_is_asked_as_ever(prompter: Prompter) -> None:
    engine = ScriptedEngine(prompter, named(prompter, any_thinker))
    asked = requests(prompter)
    completed = complete(engine, None, asked)
    assert engine.max_tokens == [200]
    seeds = [[sample_seed(KEY, f"q{q}", i) for i in range(3)] for q in range(5)]
    assert [seed for call in engine.seeds for seed in call] == [s for each in seeds for s in each]
    drawn = engine.generate(
        [r.prompt_ids for r in asked], Sampling(max_tokens=200), seeds, prompter.stop_ids
    )
    assert [[(w.ids, w.finish_reason) for w in group] for group in completed] == [
        [(one.ids, one.finish_reason) for one in group] for group in drawn
    ]


# ---------------------------------------------------------------- with a model
def test_a_models_evaluation_is_forced(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(TINY)
    model = new_model(ScratchModel(layers=1, width=32, heads=2, steps=0, seed=1), tokenizer)
    save_model(model, tokenizer, tmp_path / "model")
    questions = [
        {"question_id": f"q{i}", "question": f"{i}?", "answer": "4", "grader": "arithmetic",
         "metadata": None}
        for i in range(40)
    ]  # fmt: skip
    budget = BudgetForcing(max_thinking_tokens=3, continuations=1, continuation=";")

    config = EvaluationConfig(n=3, temperature=1.0, max_tokens=18)
    resources = StageResources(tokens_per_batch=8192)

    def evaluate(config: EvaluationConfig) -> tuple[list[dict[str, str]], list[Request]]:
        examination = Examination(
            tmp_path / "model", [EvalTask("test", questions)], config, format=TINY, key=KEY, seed=0,
            model_key="feedfacefeedface", resources=resources,
        )  # fmt: skip
        with examination:
            return examination.answer(examination.requests, Control()), examination.requests

    free, _ = evaluate(config)
    rows, asked = evaluate(config.model_copy(update={"budget": budget}))
    with open_engine(tmp_path / "model", "float32", resources) as engine:
        forcer = Forcer(CHARACTERS, budget, config.max_tokens)
        completer = Completer(engine, config, CHARACTERS.stop_ids, KEY, forcer)
        ids = [one.ids for group in completer.complete(asked, Control()) for one in group]
    [opening], [closing] = spelled(CHARACTERS, "{open}"), spelled(CHARACTERS, "{close}")
    cut = 0
    for row, unforced, tokens in zip(rows, free, ids, strict=True):
        assert row["completion"] == CHARACTERS.decode(tokens)
        if opening not in tokens:
            assert row == unforced
            continue
        start = tokens.index(opening) + 1
        assert unforced["completion"].startswith(CHARACTERS.decode(tokens[:start]))
        end = tokens.index(closing, start) if closing in tokens[start:] else len(tokens)
        assert end - start <= 3
        cut += TINY.thought_close + TINY.solution_open in row["completion"]
    assert cut > 3  # a random model opens a thought now and then, and forgets about it
