"""The artifacts that a report reads, found by what made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlt_core.rows import read_rows, table_files
from rlt_core.store import Manifest


@dataclass(frozen=True)
class Part:
    """One artifact."""

    name: str
    """Label and seed: `student-sft[rlt]@0`."""
    manifest: Manifest
    folder: Path

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return self.manifest.stage

    @property
    def label(self) -> str:
        """`stage[variant]`."""
        return self.manifest.label

    @property
    def variant(self) -> str:
        """What tells it from others of its stage: `rlt` of `student-sft[rlt]`."""
        return self.label.removeprefix(self.stage).strip("[]")

    @property
    def seed(self) -> int | None:
        """Its training seed; None if all seeds share it."""
        return self.manifest.seed

    def has(self, table: str) -> bool:
        """Whether the artifact holds a table."""
        return bool(table_files(self.folder, table))

    def rows(self, table: str, *columns: str) -> list[dict[str, Any]]:
        """Rows of a table."""
        return read_rows(self.folder, table, list(columns) or None)


class Parts:
    """All artifacts of a run, in the order of the graph."""

    def __init__(self, inputs: Mapping[str, tuple[Manifest, Path]]) -> None:
        self.all = [Part(name, manifest, folder) for name, (manifest, folder) in inputs.items()]

    def of(self, *stages: str) -> list[Part]:
        """Those of some stages."""
        return [part for part in self.all if part.stage in stages]

    def by_variant(self, *stages: str) -> dict[str, list[Part]]:
        """Those of some stages, the seeds of one variant together."""
        return _grouped(self.of(*stages))


def _grouped(parts: Iterable[Part]) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.variant, []).append(part)
    return found
