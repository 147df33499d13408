"""`rlt artifacts pull` and `push`: copy artifacts between stores."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from flows.cli.options import DEFAULT_STORE, StoreOption, existing_store, open_store
from rlt_core.errors import UserError
from rlt_core.store import Manifest, Store
from rlt_core.store.transfer import CopyFailed, copy_artifact, with_inputs

LINE_EVERY_S = 15.0
"""Seconds between two lines on one artifact where there is no terminal."""

KeysArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY...", help="Keys, unique beginnings of keys, or names."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every artifact.")]
InputsOption = Annotated[
    bool, typer.Option("--with-inputs", help="Also all that they were made from.")
]
RefsOption = Annotated[
    bool, typer.Option("--refs", help="Also the names that the artifacts have; they move.")
]


def pull(
    source: Annotated[str, typer.Option("--from", help="A folder or s3://bucket/prefix.")],
    keys: KeysArgument = None,
    store: StoreOption = DEFAULT_STORE,
    every: AllOption = False,
    inputs: InputsOption = False,
    refs: RefsOption = False,
) -> None:
    """Copy artifacts from another store to this one. Interrupted, the same command goes on."""
    _copy(existing_store(source), open_store(store), keys or [], every, inputs, refs)


def push(
    target: Annotated[str, typer.Option("--to", help="A folder or s3://bucket/prefix.")],
    keys: KeysArgument = None,
    store: StoreOption = DEFAULT_STORE,
    every: AllOption = False,
    inputs: InputsOption = False,
    refs: RefsOption = False,
) -> None:
    """Copy artifacts from this store to another. Interrupted, the same command goes on."""
    _copy(existing_store(store), open_store(target), keys or [], every, inputs, refs)


def _copy(
    source: Store, target: Store, keys: list[str], every: bool, inputs: bool, refs: bool
) -> None:
    """Copy, print, and exit with 0, or with 1 if an artifact or an input could not be copied."""
    if bool(keys) == every:
        raise UserError("name the artifacts to copy, or give --all")
    if str(source) == str(target):
        raise UserError(f"{source}: source and target are the same store")
    chosen = source.manifests() if every else [source.find(key) for key in keys]
    chosen, gone = with_inputs(source, chosen) if inputs or every else (_once(chosen), [])
    gone = gone if inputs else []
    copied = failed = moved = 0
    with _Display(chosen) as display:
        for manifest in chosen:
            try:
                display.begin(manifest)
                new = copy_artifact(source, target, manifest, display.advance, display.waiting)
            except CopyFailed as error:
                failed += 1
                display.end("failed", manifest)
                print(f"rlt: {error}", file=sys.stderr)
            else:
                copied, moved = copied + new, moved + new * manifest.bytes
                display.end("copied" if new else "is there", manifest)
    if refs:
        _copy_refs(source, target, {manifest.ref.key for manifest in chosen})
    for line in gone:
        print(f"rlt: {line}", file=sys.stderr)
    there = len(chosen) - copied - failed
    print(
        f"{copied} artifacts copied ({decimal(moved)}), {there} were there, {failed} failed, "
        f"in {target}"
    )
    raise typer.Exit(1 if failed or gone else 0)


def _once(manifests: list[Manifest]) -> list[Manifest]:
    return list({manifest.ref.key: manifest for manifest in manifests}.values())


def _copy_refs(source: Store, target: Store, keys: set[str]) -> None:
    """Name those artifacts at the target as at the source, if they have arrived."""
    names = {name: ref for name, ref in source.refs().items() if ref.key in keys}
    held, named = target.manifests_of(names.values()), target.refs()
    for name, ref in names.items():
        if ref.key in held and named.get(name) != ref:
            target.set_ref(name, ref)


class _Display:
    """A bar over all bytes on a terminal, lines elsewhere."""

    def __init__(self, chosen: list[Manifest]) -> None:
        self._console = Console()
        self._live = self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(),
            TransferSpeedColumn(), TimeRemainingColumn(), console=self._console, transient=True,
        )  # fmt: skip
        self._bar = self._bars.add_task("", total=sum(one.bytes for one in chosen))
        self._lock = threading.Lock()
        self._number, self._count = 0, len(chosen)
        self._before = self._arrived = 0
        self._name, self._size, self._said = "", 0, 0.0

    def __enter__(self) -> _Display:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, manifest: Manifest) -> None:
        """An artifact is next."""
        self._number += 1
        self._name, self._size, self._arrived = manifest.label, manifest.bytes, 0
        self._said = time.monotonic()
        self._bars.update(self._bar, description=escape(manifest.label))

    def advance(self, moved: int) -> None:
        """So many more of its bytes have arrived."""
        with self._lock:
            self._arrived += moved
            now = min(self._arrived, self._size)
            self._bars.update(self._bar, completed=self._before + now)
            if not self._live and time.monotonic() - self._said > LINE_EVERY_S:
                self._said = time.monotonic()
                self._say(f"         {self._name}  {decimal(now)} of {decimal(self._size)}")

    def waiting(self, lease: dict[str, object]) -> None:
        """Somebody works on this key at the target."""
        self._bars.update(self._bar, description=escape(f"{self._name}: waiting for another"))
        if not self._live and time.monotonic() - self._said > LINE_EVERY_S:
            self._said = time.monotonic()
            self._say(f"         {self._name}  waits for {lease['host']}, pid {lease['pid']}")

    def end(self, how: str, manifest: Manifest) -> None:
        """It is copied, was there, or failed."""
        self._before += manifest.bytes
        self._bars.update(self._bar, completed=self._before)
        count = f"{self._number}/{self._count}"
        facts = f"{manifest.label}  {manifest.ref.key}  {decimal(manifest.bytes)}"
        self._say(f"{count:>7}  {how:<8}  {facts}")
