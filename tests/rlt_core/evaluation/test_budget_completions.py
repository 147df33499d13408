"""What an engine or a model writes is as long as the budget says, whatever is asked beside it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlt_core.config import BudgetForcing, EvaluationConfig, Sampling, ScratchModel, StageResources
from rlt_core.errors import Stopped
from rlt_core.evaluation.benchmarks import EvalTask
from rlt_core.evaluation.budget_forcing import Draft, Forcer
from rlt_core.evaluation.run import Completer, ModelEvaluation, SampleRequest
from rlt_core.generation import Completion, open_engine, sample_seed
from rlt_core.generation.engine import ClosesItself, FinishReason
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.renderer import Renderer
from tests.rlt_core.evaluation.renderers import (
    CHARACTERS,
    PROMPTERS,
    TINY,
    spelled,
)

KEY = "0123456789abcdef"


# ---------------------------------------------------------------- a scripted engine
Reply = Callable[[str, np.random.Generator], str]
"""What a model writes after what it has written, if nothing stops it. Its turn then ends."""


class ScriptedEngine(ClosesItself):
    """Writes what a function says: a completion depends on its prompt and its seed."""

    def __init__(self, renderer: Renderer, reply: Reply) -> None:
        self.renderer, self.reply = renderer, reply
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
        progress: Progress | None = None,
    ) -> list[list[Completion]]:
        progress = progress or Progress()
        progress.check()
        self.seeds.append([seed for each in seeds for seed in each])
        self.max_tokens.append(sampling.max_tokens)
        drawn = [
            [self._completion(prompt, seed, sampling.max_tokens) for seed in each]
            for prompt, each in zip(prompts, seeds, strict=True)
        ]
        progress.report(len(self.seeds[-1]), len(self.seeds[-1]), {})
        return drawn

    def _completion(self, prompt: Sequence[int], seed: int, max_tokens: int) -> Completion:
        turn = self.renderer.tokenizer.decode(list(prompt)).rpartition("assistant\n")[2]
        text = self.reply(turn, np.random.default_rng(seed))
        assert len(prompt) < self.context
        room = min(max_tokens, self.context - len(prompt))
        ids = [*spelled(self.renderer, text), self.renderer.end_of_turn][:room]
        reason: FinishReason = "stop" if ids[-1] == self.renderer.end_of_turn else "length"
        return Completion(ids, reason, np.zeros(len(ids), np.float32))


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


def named(renderer: Renderer, reply: Reply) -> Reply:
    """The reply of a model that reads tags by name."""
    thought, solution = renderer.format.thought_open, renderer.format.solution_open
    return lambda turn, rng: reply(
        turn.replace(thought, "{open}").replace(solution, "{answer}"), rng
    )


Completed = list[list[Draft]]


def complete(
    engine: ScriptedEngine,
    budget: BudgetForcing | None,
    asked: Sequence[SampleRequest],
    max_tokens: int = 200,
    progress: Progress | None = None,
) -> Completed:
    config = EvaluationConfig(n=3, max_tokens=max_tokens)
    forcer = Forcer(engine.renderer, budget, max_tokens) if budget else None
    completer = Completer(engine, config, engine.renderer.stop_ids, KEY, forcer)
    return completer.complete(asked, progress or Progress())


def requests(renderer: Renderer, count: int = 5) -> list[SampleRequest]:
    return [
        SampleRequest(
            "test", {"question_id": f"q{i}"}, renderer.student_prompt(f"{i}+{i}?"), range(3)
        )
        for i in range(count)
    ]


def texts(renderer: Renderer, completed: Completed) -> list[str]:
    return [renderer.decode(one.ids) for group in completed for one in group]


@PROMPTERS
def test_a_model_that_closes_at_once_thinks_on_as_often_as_it_is_told(
    renderer: Renderer,
) -> None:
    engine = ScriptedEngine(renderer, named(renderer, quick_thinker))
    budget = BudgetForcing(continuations=4, continuation="Wait")
    completed = complete(engine, budget, requests(renderer))
    for text in texts(renderer, completed):
        answer = renderer.split_answer(text)
        assert answer.formatted and answer.thought and answer.solution
        numbers = answer.thought.split("Wait")
        assert len(numbers) == 5 and all(number.isdigit() for number in numbers)
        assert numbers[-1] == answer.solution  # of the last phase: earlier answers are gone
        assert len(set(numbers)) > 1  # every phase has a seed of its own
    assert len(engine.seeds) == 5  # phases
    every = [seed for call in engine.seeds for seed in call]
    assert len(set(every)) == len(every) == 5 * 15


@PROMPTERS
def test_two_runs_end_the_same_whatever_is_asked_beside(renderer: Renderer) -> None:
    budget = BudgetForcing(max_thinking_tokens=20, continuations=2)
    asked = requests(renderer)
    reply = named(renderer, any_thinker)
    engine = ScriptedEngine(renderer, reply)
    whole = complete(engine, budget, asked)
    assert len(engine.seeds) > 2
    assert complete(ScriptedEngine(renderer, reply), budget, asked) == whole
    pieces = [replace(one, samples=range(i, i + 1)) for one in asked for i in range(3)]
    for shard in (pieces[1:2], pieces[4:9], pieces):
        drawn = complete(ScriptedEngine(renderer, reply), budget, shard)
        flat = [one for group in whole for one in group]
        assert [group[0] for group in drawn] == [flat[pieces.index(one)] for one in shard]
    for enough in range(len(engine.seeds)):
        engine = ScriptedEngine(renderer, reply)
        progress = Progress(should_stop=lambda e=engine, n=enough: len(e.seeds) >= n)  # type: ignore[misc]
        with pytest.raises(Stopped):
            complete(engine, budget, asked, progress=progress)


def test_progress_counts_what_is_finished() -> None:
    seen: list[tuple[int, int]] = []
    progress = Progress(lambda done, total, _: seen.append((done, total)))
    engine = ScriptedEngine(CHARACTERS, named(CHARACTERS, any_thinker))
    budget = BudgetForcing(max_thinking_tokens=20, continuations=2)
    complete(engine, budget, requests(CHARACTERS), progress=progress)
    assert seen == sorted(seen) and seen[0] == (0, 15) and 0 < seen[-1][0] < 15


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
                assert one == Draft([], finish_reason="too_long")


@PROMPTERS
def test_without_a_budget_the_engine_is_asked_as_ever(renderer: Renderer) -> None:
    engine = ScriptedEngine(renderer, named(renderer, any_thinker))
    asked = requests(renderer)
    completed = complete(engine, None, asked)
    assert engine.max_tokens == [200]
    seeds = [[sample_seed(KEY, f"q{q}", i) for i in range(3)] for q in range(5)]
    assert [seed for call in engine.seeds for seed in call] == [s for each in seeds for s in each]
    drawn = engine.generate(
        [r.prompt_ids for r in asked], Sampling(max_tokens=200), seeds, renderer.stop_ids
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

    def evaluate(config: EvaluationConfig) -> tuple[list[dict[str, str]], list[SampleRequest]]:
        evaluation = ModelEvaluation(
            tmp_path / "model", [EvalTask("test", questions)], config, format=TINY, key=KEY, seed=0,
            model_key="feedfacefeedface", resources=resources,
        )  # fmt: skip
        with evaluation:
            return evaluation.complete(evaluation.requests, Progress()), evaluation.requests

    free, _ = evaluate(config)
    rows, asked = evaluate(config.model_copy(update={"budget": budget}))
    with open_engine(tmp_path / "model", "float32", resources) as engine:
        forcer = Forcer(CHARACTERS, budget, config.max_tokens)
        completer = Completer(engine, config, CHARACTERS.stop_ids, KEY, forcer)
        ids = [one.ids for group in completer.complete(asked, Progress()) for one in group]
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
