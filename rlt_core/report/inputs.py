"""The artifacts that a report reads, found by the stage that made them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlt_core.explain import IDS
from rlt_core.rows import read_rows, read_table, table_files
from rlt_core.sql.schemas import TABLES
from rlt_core.store import Manifest

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One artifact."""

    name: str
    """Label and seed: `student-sft[rlt]@0`."""
    manifest: Manifest
    folder: Path
    made: Mapping[str, "Part"] = field(repr=False, compare=False)
    """All artifacts of the run by key."""

    @property
    def key(self) -> str:
        return self.manifest.ref.key

    @property
    def stage(self) -> str:
        return self.manifest.stage

    @property
    def variant(self) -> str:
        """Name among the artifacts of its stage: `rlt` for `student-sft[rlt]`."""
        return self.manifest.label.removeprefix(self.stage).strip("[]")

    @property
    def seed(self) -> int | None:
        """Its training seed; None if all seeds share it."""
        return self.manifest.seed

    @property
    def inputs(self) -> "dict[str, Part]":
        """The artifacts that it read, by name; without those that the report lacks."""
        refs = self.manifest.inputs.items()
        return {name: self.made[ref.key] for name, ref in refs if ref.key in self.made}

    def rows(self, table: str, *columns: str) -> list[Row]:
        """Rows of a table."""
        return read_rows(self.folder, table, list(columns) or None)

    def row(self, table: str, name: str) -> Row | None:
        """The row of a table with an id."""
        files = table_files(self.folder, table)
        given = {"filters": [(IDS[table], "=", name)], "schema": TABLES[table]}
        rows = (row for file in files for row in read_table(file, **given).to_pylist())
        return next(rows, None)


class Parts:
    """All artifacts of a run, in the order of the graph."""

    def __init__(self, inputs: Mapping[str, tuple[Manifest, Path]]) -> None:
        made: dict[str, Part] = {}
        for name, (manifest, folder) in inputs.items():
            made[manifest.ref.key] = Part(name, manifest, folder, made)
        self.all = list(made.values())

    def of(self, stage: str) -> list[Part]:
        """All artifacts of a stage."""
        return [part for part in self.all if part.stage == stage]

    def by_variant(self, stage: str) -> dict[str, list[Part]]:
        """All artifacts of a stage, the seeds of one variant together."""
        found: dict[str, list[Part]] = {}
        for part in self.of(stage):
            found.setdefault(part.variant, []).append(part)
        return found
