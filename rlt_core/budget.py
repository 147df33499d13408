"""What the traces of a run may take in tokens and money, and what they have taken."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from rlt_core.config.endpoint import Prices
from rlt_core.errors import UserError
from rlt_core.store import Store

SHARDS, RESPONSES = "shards", "responses"
"""Groups of a workspace whose parts say what they took."""
PAUSE = 20
"""The other nodes are read again after this many times as long as reading them took."""

Tokens = Counter[str]
"""`prompt` and `answer` of an endpoint, `completion` of a model that is computed here."""


class TokenBudget(BaseModel):
    """The budget of a graph's traces, whose nodes may run side by side, on several machines and in
    several attempts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int | None
    usd: float | None
    nodes: tuple[str, ...]
    """Keys of all nodes that write traces, also of those in the store."""


class Allowance:
    """What a budget leaves to one node.

    `prices` are given for a node that spends money. Raises UserError if the budget is in money and
    they are not set.
    """

    def __init__(
        self, budget: TokenBudget, store: Store, key: str, prices: Prices | None = None
    ) -> None:
        self._budget, self._store, self._key, self._prices = budget, store, key, prices
        if prices and budget.usd is not None:
            prices.require()
        self._parts: dict[tuple[str, str], dict[str, Mapping[str, float]]] = defaultdict(dict)
        self._others, self._due = Tokens(), 0.0

    def spent(self, own: Tokens | None = None) -> str | None:
        """Return what was spent if nothing is left. `own`: tokens of this node; None: as many as
        the store knows of."""
        taken = self._of_others() + (self._of(self._key) if own is None else own)
        tokens, limit, usd = taken.total(), self._budget.tokens, self._budget.usd
        if limit is not None and tokens >= limit:
            return f"{tokens} tokens of resources.budget_tokens={limit} are spent"
        if self._prices and usd is not None:
            cost = self._prices.cost(taken["prompt"], taken["answer"]) or 0.0
            if cost >= usd:
                return f"{cost:.4g} of resources.budget_usd={usd:g} is spent"
        return None

    def _of_others(self) -> Tokens:
        if (start := time.monotonic()) >= self._due:
            others = (key for key in self._budget.nodes if key != self._key)
            self._others = sum((self._of(key) for key in others), Tokens())
            now = time.monotonic()
            self._due = now + PAUSE * (now - start)
        return self._others

    def _of(self, key: str) -> Tokens:
        """Return the tokens of a node, by its manifest or by the parts in its workspace."""
        work = self._store.workspace(key)
        parts: list[Mapping[str, float]] = []
        for group in (SHARDS, RESPONSES):
            known = self._parts[key, group]
            known |= work.metrics(group, known)
            parts += known.values()
        made = self._store.manifest("traces", key)
        return sum(map(tokens_of, [made.metrics] if made else parts), Tokens())


def tokens_of(metrics: Mapping[str, float]) -> Tokens:
    """Return the tokens of a part or of an artifact."""
    if "prompt_tokens" in metrics:
        prompt, answer = metrics["prompt_tokens"], metrics["completion_tokens"]
        return Tokens(prompt=int(prompt), answer=int(answer))
    whole = metrics.get("traces", 0) * metrics.get("mean_tokens", 0)
    return Tokens(completion=round(metrics.get("completion_tokens", whole)))


def exhausted(spent: str, done: int, total: int, things: str) -> UserError:
    """Return the error with which a node ends when nothing is left."""
    return UserError(
        f"{spent}; {done} of {total} {things} are done and saved: the same command with a larger "
        "budget continues"
    )
