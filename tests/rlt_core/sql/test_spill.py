"""What DuckDB writes to disk while it computes."""

import os
import subprocess
import sys
from pathlib import Path

SPILLS = """
import sys
from pathlib import Path
from rlt_core.sql.views import connect
from rlt_core.store import Store

connection = connect(Store(sys.argv[1]))
folder = connection.sql("select current_setting('temp_directory')").fetchall()[0][0]
print(folder, oct(Path(folder).stat().st_mode & 0o777))
"""


def test_it_is_in_a_private_folder_that_is_removed(tmp_path: Path) -> None:
    """Its name cannot be guessed, so that nobody has made it before."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = set()
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SPILLS, str(tmp_path / "store")], capture_output=True,
            text=True, check=True, env=os.environ | {"TMPDIR": str(scratch)},
        )  # fmt: skip
        folder, mode = done.stdout.split()
        assert Path(folder).parent == scratch and mode == "0o700"
        found.add(folder)
    assert len(found) == 2
    assert not list(scratch.iterdir())
