"""The newest report of a store, committed or of what exists, on both kinds of store."""

import json

import pytest

from rlt_core.errors import UserError
from rlt_core.report.stored import ABOUT, FOLDER, latest_report
from rlt_core.store import Store
from tests.sample_store import commit


def unfinished(store: Store, key: str, node: str, about: bytes) -> None:
    folder = FOLDER.format(key=key)
    store.files.write(f"work/{key}/node.txt", node.encode())
    store.files.write(f"{folder}/report.md", f"# {node}".encode())
    store.files.write(f"{folder}/{ABOUT}", about)


def test_the_newest_report_is_found_and_unknown_names_get_the_nearest(store_root: str) -> None:
    store = Store(store_root)
    with pytest.raises(UserError, match="no report in"):
        latest_report(store, None, None)
    made = commit(store, "report", {})
    store.set_ref("tiny/report", made.ref)
    assert latest_report(store, None, None) == store.intact(made)
    late = json.dumps({"profile": "smoke", "seconds": 4e9}).encode()
    unfinished(store, "0" * 16, "report[table-1]", late)
    for number, damaged in enumerate(
        (b"", b"[]", b"{}", b"\xff", b'{"profile": 1, "seconds": "x"}')
    ):
        unfinished(store, f"{number + 1:016}", "report[table-2]", damaged)
    for experiment, profile in ((None, None), ("table-1", None), (None, "smoke")):
        folder = latest_report(store, experiment, profile)
        assert (folder / "report.md").read_text() == "# report[table-1]"
    assert latest_report(store, "full-pipeline", None) == store.intact(made)
    for names, hint in ((("tabel-1", None), "'table-1'"), ((None, "smoek"), "'smoke'")):
        with pytest.raises(UserError, match=f"did you mean {hint}"):
            latest_report(store, *names)
