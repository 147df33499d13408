"""Proxies, full disks and errors of the environment."""

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from rlt_core.environment import (
    DiskFull,
    bypass_proxies_on_loopback,
    disk_space,
    in_one_line,
)
from rlt_core.errors import UserError

LOOPBACK = "localhost,127.0.0.1,::1"
MIB = 1 << 20


# ---------------------------------------------------------------- proxies
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        ({"NO_PROXY": "a.b"}, {"no_proxy": f"a.b,{LOOPBACK}", "NO_PROXY": f"a.b,{LOOPBACK}"}),
        (
            {"no_proxy": " a.b, localhost"},
            dict.fromkeys(("no_proxy", "NO_PROXY"), "a.b,localhost,127.0.0.1,::1"),
        ),
        (
            {"no_proxy": "a", "NO_PROXY": "b"},
            {"no_proxy": f"a,{LOOPBACK}", "NO_PROXY": f"b,{LOOPBACK}"},
        ),
        ({"NO_PROXY": "*"}, {"NO_PROXY": "*"}),
    ],
)
def test_loopback_is_added_to_what_needs_no_proxy(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: dict[str, str]
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):  # again: nothing more
        bypass_proxies_on_loopback()
        assert {
            name: os.environ[name] for name in os.environ if name.lower() == "no_proxy"
        } == after


ASK = """
import threading, http.server, flows, httpx, httpx2, urllib.request
from botocore.utils import get_environ_proxies
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
for library in (httpx, httpx2):
    assert library.get(url).status_code == 200
    try:
        library.get("http://elsewhere.invalid/", timeout=5)
    except (library.ProxyError, library.ConnectError) as error:
        assert "name" not in str(error).lower(), error  # it would have looked the host up itself
if "SOCKS" not in __import__("os").environ:
    assert urllib.request.urlopen(url).status == 200
    assert not get_environ_proxies(url) and get_environ_proxies("http://elsewhere.invalid/")
"""


@pytest.mark.parametrize(
    "proxy",
    [
        {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "example.org"},
        {"ALL_PROXY": "socks5h://127.0.0.1:9", "SOCKS": "1"},
    ],
    ids=lambda proxy: next(iter(proxy)),
)
def test_this_machine_is_asked_directly_and_others_through_the_proxy(
    proxy: dict[str, str],
) -> None:
    kept = {name: v for name, v in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run([sys.executable, "-c", ASK], env=kept | proxy, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# ---------------------------------------------------------------- full disks
@pytest.fixture
def tiny_disk(small_disk: Callable[[Path, str], Path], tmp_path: Path) -> Path:
    """A disk of 1 MiB."""
    return small_disk(tmp_path / "disk", "1m")


def _torch(place: Path) -> None:
    torch.save(torch.zeros(MIB), place / "x.pt")


def _safetensors(place: Path) -> None:
    save_file({"x": torch.zeros(MIB)}, place / "x.safetensors")


def _parquet(place: Path) -> None:
    table = pa.table({"x": torch.rand(MIB).numpy()})
    pq.write_table(table, place / "x.parquet", compression="none")


def _plain(place: Path) -> None:
    (place / "x").write_bytes(bytes(4 * MIB))


@pytest.mark.parametrize("write", [_torch, _safetensors, _parquet, _plain])
def test_every_writer_of_ours_says_which_disk_is_full_and_how_much_is_missing(
    tiny_disk: Path, write: object
) -> None:
    assert callable(write)
    with pytest.raises(DiskFull) as caught, disk_space(tiny_disk / "new", 4 * MIB):
        write(tiny_disk)
    line = str(caught.value)
    del caught
    if write is _torch:  # its writer keeps the file open
        gc.collect()
    assert str(tiny_disk) in line and "1.0 MiB free" in line and "3.0 MiB are missing" in line
    assert "\n" not in line
    for file in tiny_disk.iterdir():
        file.unlink()
    with disk_space(tiny_disk, 4):
        (tiny_disk / "x").write_bytes(b"made")  # there is room again


def test_without_a_size_the_fullest_disk_is_named(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tiny_disk))
    try:
        _plain(tiny_disk)
    except OSError as error:
        line = in_one_line(error, tmp_path)
    assert line and str(tiny_disk) in line and "0.0 MiB free" in line


def test_what_is_no_error_of_the_environment_keeps_its_traceback(tmp_path: Path) -> None:
    for error in (ValueError("x"), RuntimeError("shape mismatch"), KeyError("x")):
        assert in_one_line(error, tmp_path) is None
        with pytest.raises(type(error)), disk_space(tmp_path, 1 << 60):
            raise error
    assert in_one_line(PermissionError(errno.EACCES, "denied", "/x"), tmp_path) == (
        "[Errno 13] denied: '/x'"
    )
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    with pytest.raises(DiskFull, match="quota"), disk_space(tmp_path, 1):
        raise quota
    assert not isinstance(DiskFull(), UserError)
