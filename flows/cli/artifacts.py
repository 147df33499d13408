"""`rlt artifacts`: list, inspect, verify, copy and remove the artifacts of a store."""

from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.text import Text
from rich.tree import Tree

from flows.cli.options import DEFAULT_STORE, ExistingStore, JsonOption
from flows.cli.terminal import (
    Console,
    new_table,
    print,
    print_data,
    print_json,
    print_whole,
    table_console,
)
from flows.cli.transfer import chosen_of, pull, push
from rlt_core.stages import Kind
from rlt_core.store import Manifest, Store
from rlt_core.store.cache import Cache, bound_bytes
from rlt_core.store.files import Damaged
from rlt_core.store.transfer import with_inputs

app = typer.Typer(
    no_args_is_help=True,
    help="Artifacts of the store: list, show, lineage, verify, pull, push, remove, gc, cache.",
)
app.command()(pull)
app.command()(push)

TABLE_ROWS = 1000
"""Artifacts that `list` shows as a table."""

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="Key, its unique beginning, or a name.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="List the files without deleting them.")
]


def _names(store: Store) -> dict[str, list[str]]:
    """Return the names of each key."""
    found: dict[str, list[str]] = {}
    for name, ref in store.refs().items():
        found.setdefault(ref.key, []).append(name)
    return found


@app.command("list")
def list_(
    store: ExistingStore = DEFAULT_STORE,
    kind: Annotated[Kind | None, typer.Option(help="Kind of the artifacts, e.g. model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List artifacts, the newest last. The table has the last thousand, JSON has all."""
    found = sorted(store.manifests(kind), key=lambda one: one.finished_at)
    if as_json:
        names = _names(store)
        print_json([_summary(one, names) for one in found])
        return
    numbers = ("seconds", "size", "rows")
    table = new_table("key", "kind", "label", "profile", *numbers, "finished (UTC)", right=numbers)
    for one in found[-TABLE_ROWS:]:
        table.add_row(
            one.ref.key, one.ref.kind, one.name, one.profile,
            f"{one.seconds:.1f}", decimal(one.bytes), str(one.rows),
            f"{one.finished_at:%Y-%m-%d %H:%M:%S}",
        )  # fmt: skip
    console = table_console()
    if (older := len(found) - TABLE_ROWS) > 0:
        console.print(
            f"… {older} older ones: --json lists all, `rlt sql` queries them", style="dim"
        )
    print_whole(console, table)
    size = decimal(sum(one.bytes for one in found))
    console.print(f"{len(found)} artifacts, {size}, in {store}")


def _summary(manifest: Manifest, names: dict[str, list[str]]) -> dict[str, Any]:
    shown = ("stage", "label", "seed", "profile", "seconds", "bytes", "rows")
    return {
        "key": manifest.ref.key,
        "kind": manifest.ref.kind,
        **{name: getattr(manifest, name) for name in shown},
        "names": names.get(manifest.ref.key, []),
        "finished_at": manifest.finished_at.isoformat(),
    }


@app.command()
def show(
    key: KeyArgument, store: ExistingStore = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Show one artifact: config, inputs, files, metrics, versions."""
    manifest = store.find(key)
    if as_json:
        print_data(manifest.model_dump_json(indent=1))
        return
    import yaml

    names = ", ".join(_names(store).get(manifest.ref.key, [])) or "none"
    print(f"{manifest.name}\nnames: {names}\nfolder: {store.data_path(manifest)}")
    print(yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


@app.command()
def lineage(
    key: KeyArgument, store: ExistingStore = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """Show the artifacts that an artifact was made from, down to the first inputs."""
    manifest = store.find(key)
    if as_json:
        ancestors, _ = with_inputs(store, [manifest])
        entries = [
            {"key": one.ref.key, "label": one.label}
            | {"inputs": {name: ref.key for name, ref in one.inputs.items()}}
            for one in reversed(ancestors)
        ]
        print_json(entries)
        return
    tree = Tree(Text.assemble((manifest.name, "bold"), f"  {manifest.ref.key}"))
    _grow(store, manifest, tree, set())
    Console().print(tree)


def _grow(store: Store, manifest: Manifest, tree: Tree, shown: set[str]) -> None:
    """Add an artifact's inputs to the tree; an artifact's own inputs are shown once."""
    for name, ref in manifest.inputs.items():
        parent, what = None, ("no longer in the store", "red")
        try:
            if parent := store.manifest(ref.kind, ref.key):
                what = (parent.name, "")
        except Damaged:
            what = ("cannot be read", "red")
        repeated = parent is not None and ref.key in shown and parent.inputs
        above = ("  (see above)" if repeated else "", "dim")
        branch = tree.add(Text.assemble((f"{name}:", "dim"), " ", what, f"  {ref.key}", above))
        if parent and ref.key not in shown:
            shown.add(ref.key)
            _grow(store, parent, branch, shown)


@app.command()
def verify(
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="Key or its beginning; by default all.")
    ] = None,
    store: ExistingStore = DEFAULT_STORE,
) -> None:
    """Re-hash the files of one artifact or of all. Exit status 1 if any is missing or altered.

    Tables whose pages have no checksums are noted: a change after this check goes unnoticed there.
    """
    chosen, unreadable = chosen_of(store, [] if key is None else [key])
    damaged = len(unreadable)
    for problem in unreadable:
        print(problem)
    for manifest in chosen:
        problems = store.verify(manifest)
        damaged += bool(problems)
        for problem in problems:
            print(f"{manifest.name} ({manifest.ref.key}): {problem}")
        if problems:
            command = f"rlt artifacts remove {manifest.ref.key}"
            print(f"  fix: `{command}`, then run again; artifacts made from it are kept")
        elif without := _without_checksums(store, manifest):
            print(f"{manifest.name} ({manifest.ref.key}): note: no page checksums: {without}")
    total = len(chosen) + len(unreadable)
    print(f"{total - damaged} of {total} artifacts are intact")
    raise typer.Exit(1 if damaged else 0)


def _without_checksums(store: Store, manifest: Manifest) -> str:
    """Return the Parquet files without page checksums: those of older versions, and imported."""
    from rlt_core.sql.checked_files import HEAD_BYTES, has_checksums

    tables = [file.path for file in manifest.files if file.path.endswith(".parquet") and file.rows]
    heads = (
        store.files.fs.cat_file(f"{store.data_path(manifest)}/{path}", 0, HEAD_BYTES)
        for path in tables
    )
    found = zip(tables, heads, strict=True)
    return ", ".join(path for path, head in found if not has_checksums(head))


@app.command()
def remove(key: KeyArgument, store: ExistingStore = DEFAULT_STORE) -> None:
    """Delete one artifact and its unfinished work; the next run computes it again."""
    manifest = store.find(key)
    store.remove(manifest.ref)
    print(f"removed {manifest.name} ({manifest.ref.key})")


@app.command()
def gc(store: ExistingStore = DEFAULT_STORE, dry_run: DryRunOption = False) -> None:
    """Delete the files of crashed attempts, which no manifest names. Running work is kept."""
    orphans = store.orphans() if dry_run else store.gc()
    for orphan in orphans:
        print(f"{orphan.path}  {decimal(orphan.bytes)}")
    what = "would be deleted" if dry_run else "deleted"
    print(f"{len(orphans)} orphans, {decimal(sum(one.bytes for one in orphans))}, {what}")


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete the copies that no process uses.")
    ] = False,
) -> None:
    """Show the local copies of files of S3 stores; RLT_CACHE_GB bounds their size."""
    copies, bound = Cache(), bound_bytes()
    if clear:
        evicted = copies.trim(0)
        print(f"{evicted.files} files, {decimal(evicted.bytes)}, deleted")
    left = copies.usage()
    print(f"{left.files} files, {decimal(left.bytes)} of {decimal(bound)}, in {copies.home}")
