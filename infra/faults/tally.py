"""What a harness counts: tries, what was lost, what failed."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Lost(Exception):
    """A committed artifact, shard or name is gone or altered, or something half is visible."""


class Failed(Exception):
    """A second try did not complete, or raised what a user must not see."""


@dataclass
class Tally:
    """The result of one part of the harness."""

    part: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    began: float = 0.0
    """On the monotonic clock, when the first trial began."""

    @contextmanager
    def trial(self, what: str, tries: int = 1) -> Iterator[None]:
        """Count one trial and the error that it ends with."""
        self.began = self.began or time.monotonic()
        self.tries += tries
        try:
            yield
        except Lost as error:
            self.lost.append(f"{what}: {error}")
        except Exception:
            self.failed.append(f"{what}: {traceback.format_exc()}")
        finally:
            self.seconds = time.monotonic() - self.began


def require(condition: object, what: str) -> None:
    """Raises Lost unless the condition holds."""
    if not condition:
        raise Lost(what)
