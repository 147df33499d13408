"""A training's metrics in a tracker: trackio, TensorBoard or Weights & Biases.

transformers' callbacks write them. This one adds our columns and completions to what TRL logs, and
lets a training neither log a step twice nor fail with its tracker.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
from transformers import TrainerCallback
from transformers.integrations import integration_utils as integrations

from rlt_core.environment import require_tracker
from rlt_core.training.metrics import StepRecorder

log = logging.getLogger(__name__)
COLUMNS = ["step", "question_id", "sample", "reward", "advantage", "text"]
"""Of `rollouts`, in the table of completions."""
PROJECT = "rlt"


class Tracker(TrainerCallback):
    """One of transformers' callbacks, in the process that writes.

    A run in the tracker begins with the node's first step and ends with its last, whatever stops
    and continues it: `tracking.json` in the workspace has its name and the last step sent.
    """

    def __init__(self, recorder: StepRecorder) -> None:
        """Raises UserError if the tracker cannot be used."""
        context = recorder.context
        self._kind, self._recorder = context.resources.tracking, recorder
        require_tracker(self._kind)
        self._file, known = context.work.folder / "tracking.json", {}
        with suppress(OSError, ValueError):
            known = json.loads(self._file.read_text())
        self._step = int(known.get("step", 0))
        title = (context.name or context.stage).replace("/", "-")
        self.name = known.get("name") or f"{title}-{uuid.uuid4().hex[:6]}"
        self._tensorboard = context.work.store / "tensorboard" / self.name
        self._inner: TrainerCallback | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        args.project, args.run_name = PROJECT, self.name
        self._try(lambda: self._remember(self._step))
        self._try(self._open)
        self._pass_on("on_train_begin", args, state, control, **given)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Send a step that was not sent. It counts as sent before it is: a killed training may
        lack it in the tracker, and has none twice."""
        step = state.global_step
        if "learning_rate" not in logs or step <= self._step:
            return
        self._try(lambda: self._remember(step))
        row = self._recorder.rows[-1]
        numbers = {name: each for name, each in row.items() if isinstance(each, int | float)}
        sampled = [each for each in self._recorder.rollouts if each["step"] == step]
        shown = {"completions": self._table(sampled)} if sampled else {}
        self._pass_on("on_log", args, state, control, logs={**logs, **numbers, **shown}, **given)

    def close(self, args: Any, state: Any, control: Any) -> None:
        """Send what is left, also after a fault."""
        self._pass_on("on_train_end", args, state, control)
        if self._inner and self._kind == "wandb":
            self._try(self._module.finish)
        self._inner = None

    def _remember(self, step: int) -> None:
        self._step = step
        new = self._file.with_suffix(".new")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps({"name": self.name, "step": step}))
        os.replace(new, self._file)

    @property
    def _module(self) -> Any:
        return importlib.import_module(self._kind)

    def _open(self) -> None:
        """Make transformers' callback; wandb's uses a run that is open."""
        callback = integrations.INTEGRATION_TO_CALLBACK[self._kind]
        if self._kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._inner = callback(SummaryWriter(str(self._tensorboard)))
            return
        if self._kind == "wandb":
            project = os.environ.get("WANDB_PROJECT", PROJECT)
            self._module.init(project=project, id=self.name, name=self.name, resume="allow")
        self._inner = callback()

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The step's completions as the tracker shows a table."""
        cells = [[row[name] for name in COLUMNS] for row in rows]
        if self._kind != "tensorboard":
            return self._module.Table(dataframe=pd.DataFrame(cells, columns=COLUMNS))
        lines = [COLUMNS, ["---"] * len(COLUMNS), *cells]
        plain = (
            [" ".join(str(cell).replace("|", "\\|").split()) for cell in line] for line in lines
        )
        return "\n".join(f"| {' | '.join(line)} |" for line in plain)

    def _pass_on(self, event: str, *given: Any, **named: Any) -> None:
        if self._inner is not None:
            self._try(lambda: getattr(self._inner, event)(*given, **named))

    def _try(self, call: Callable[[], object]) -> None:
        """Call a tracker; once it fails, warn and go without."""
        try:
            call()
        except Exception as error:
            self._inner = None
            log.warning(
                "%s failed, and this training goes on without it: %s: %s",
                self._kind, type(error).__name__, error,
            )  # fmt: skip
