"""Code from a user's own modules: objects named `module:name`, and entry points of packages.

`docs/extending.md` shows each kind. The config holds `module:name@digest`, with the digest of the
module's source, so that an edit of the module changes the keys of the nodes that use it.
"""

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from rlt_core.errors import UserError

T = TypeVar("T")
PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(@[0-9a-f]{16})?")


def is_path(text: str) -> bool:
    """Return whether a text is written as `module:name`."""
    return PATH.fullmatch(text) is not None


def digest(module: str) -> str:
    """Return 16 hex digits of the SHA-256 of a module's source file. Raises UserError."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise UserError(f"no module {module!r}; install it, or name its folder in PYTHONPATH")
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()[:16]


def pinned(path: str) -> str:
    """Return `module:name@digest`; a path that has its digest is returned as it is.

    Raises ValueError where there is no such module or name, as config validators do.
    """
    if "@" in path:
        return path
    module, _, _ = path.partition(":")
    try:
        whole = f"{path}@{digest(module)}"
        load(whole)
    except UserError as error:
        raise ValueError(str(error)) from None
    return whole


@cache
def load(path: str) -> Any:
    """Return the object of a pinned path. Raises UserError where this machine's source differs."""
    name, _, expected = path.partition("@")
    module, _, attribute = name.partition(":")
    if digest(module) != expected:
        raise UserError(
            f"{name}: the source of {module} is not the one that this run was planned with; "
            "plan it again, with the same source on every machine"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise UserError(f"{name}: the module {module} has no {attribute!r}") from None


class WithEntryPoints(Mapping[str, T]):
    """Our own objects by name, and those that installed packages add through entry points.

    Packages are loaded on first use: a module of theirs may import this one.
    """

    def __init__(self, group: str, own: Mapping[str, T]) -> None:
        self._group, self._own = group, own

    @cached_property
    def _all(self) -> dict[str, T]:
        found = dict(self._own)
        for point in entry_points(group=self._group):
            if point.name in found:
                raise UserError(
                    f"{self._group}: {point.name!r} ({point.value}) is taken; rename it"
                )
            found[point.name] = point.load()
        return found

    def __getitem__(self, name: str) -> T:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)
