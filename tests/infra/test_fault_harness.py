"""A sample of `make faults`: nothing is lost, whatever is killed or fails."""

import subprocess
import sys


def test_nothing_is_lost() -> None:
    command = [sys.executable, "-m", "infra.faults", "--short"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    tries = {line[:24].strip(): int(line[24:].split()[0]) for line in done.stdout.splitlines()[1:]}
    assert len(tries) == 5 and min(tries.values()) > 0, done.stdout
