"""What a program imports, in a process of its own."""

import os
import subprocess
import sys

HEAVY = {"torch", "prefect", "transformers", "pandas", "scipy", "lighteval", "starlette"}


def imported(program: str, *arguments: object, **environment: str) -> set[str]:
    """Those of `HEAVY` that are imported when the program has ended."""
    code = f"{program}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.splitlines()[-1].split())
