"""`rlt artifacts pull` and `push`: copy artifacts between stores."""

import sys
import threading
from collections import Counter
from typing import Annotated

import typer
from rich.filesize import decimal

from flows.cli.options import DEFAULT_STORE, StoreOption, existing_store, open_store
from flows.cli.progress import Display
from flows.cli.terminal import print
from rlt_core.errors import UserError
from rlt_core.store import Manifest, Store
from rlt_core.store.files import Damaged
from rlt_core.store.manifest import read_manifests
from rlt_core.store.transfer import CopyFailed, copy_artifact, with_inputs

KeysArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY", help="Keys, unique beginnings of keys, or names."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Every artifact.")]
InputsOption = Annotated[
    bool, typer.Option("--with-inputs", help="Also the artifacts that they were made from.")
]
RefsOption = Annotated[
    bool, typer.Option("--refs", help="Also the artifacts' names; existing names are moved.")
]


def pull(
    source: Annotated[str, typer.Option("--from", help="A folder or s3://bucket/prefix.")],
    keys: KeysArgument = None,
    store: StoreOption = DEFAULT_STORE,
    every: AllOption = False,
    inputs: InputsOption = False,
    refs: RefsOption = False,
) -> None:
    """Copy artifacts from another store to this one.

    After an interruption, the same command continues.
    """
    _copy(existing_store(source), open_store(store), keys or [], every, inputs, refs)


def push(
    target: Annotated[str, typer.Option("--to", help="A folder or s3://bucket/prefix.")],
    keys: KeysArgument = None,
    store: StoreOption = DEFAULT_STORE,
    every: AllOption = False,
    inputs: InputsOption = False,
    refs: RefsOption = False,
) -> None:
    """Copy artifacts from this store to another.

    After an interruption, the same command continues.
    """
    _copy(existing_store(store), open_store(target), keys or [], every, inputs, refs)


def _copy(
    source: Store, target: Store, keys: list[str], every: bool, inputs: bool, refs: bool
) -> None:
    """Copy and exit: with 0, or with 1 if an artifact or an input could not be copied."""
    if bool(keys) == every:
        raise UserError("name the artifacts to copy, or give --all")
    if str(source) == str(target):
        raise UserError(f"{source}: source and target are the same store")
    chosen, problems = chosen_of(source, keys)
    if inputs or every:
        chosen, gone = with_inputs(source, chosen)
        problems += gone if inputs else []
    outcomes, moved = Counter[str](), 0
    with Display(len(chosen)) as display:
        for manifest in chosen:
            facts = f"{manifest.label}  {manifest.ref.key}  {decimal(manifest.bytes)}"
            try:
                new = _copy_one(source, target, manifest, display)
                outcome, moved = "copied" if new else "is there", moved + new * manifest.bytes
            except (CopyFailed, Damaged) as error:
                outcome = "failed"
                problems.append(str(error))
            outcomes[outcome] += 1
            display.end(manifest.label, f"{outcome:<8}  {facts}")
    if refs:
        problems += _copy_refs(source, target, {manifest.ref.key for manifest in chosen})
    for problem in problems:
        print(f"rlt: {problem}", file=sys.stderr)
    print(
        f"{outcomes['copied']} artifacts copied ({decimal(moved)}), {outcomes['is there']} were "
        f"there, {len(problems)} failed, in {target}"
    )
    raise typer.Exit(1 if problems else 0)


def chosen_of(source: Store, keys: list[str]) -> tuple[list[Manifest], list[str]]:
    """Return the artifacts of these keys, without keys all, and why others cannot be read."""
    if not keys:
        manifests, problems = read_manifests(source.files)
        return list(manifests.values()), list(problems.values())
    chosen, unreadable = {}, []
    for key in keys:
        try:
            found = source.find(key)
        except Damaged as error:
            unreadable.append(str(error))
        else:
            chosen[found.ref.key] = found
    return list(chosen.values()), unreadable


def _copy_one(source: Store, target: Store, manifest: Manifest, display: Display) -> bool:
    """Return whether the artifact was copied; False: it was there. Raises CopyFailed."""
    name, lock, arrived = manifest.label, threading.Lock(), 0

    def advance(moved: int) -> None:
        nonlocal arrived
        with lock:
            arrived += moved
            display.progress(name, min(arrived, manifest.bytes), manifest.bytes, {})

    display.begin(name)
    return copy_artifact(
        source, target, manifest, advance, lambda lease: display.progress(name, 0, 0, {})
    )


def _copy_refs(source: Store, target: Store, keys: set[str]) -> list[str]:
    """Give the artifacts that have arrived their names of the source; return why one has not."""
    problems = []
    names = {name: ref for name, ref in source.refs().items() if ref.key in keys}
    held, named = target.manifests_of(names.values()), target.refs()
    for name, ref in names.items():
        if ref.key in held and named.get(name) != ref:
            try:
                target.set_ref(name, ref)
            except Damaged as error:
                problems.append(f"name {name}: {error}")
    return problems
