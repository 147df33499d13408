"""Files and folders of this user alone, whatever the umask is."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from rlt_core.errors import UserError


def home() -> Path:
    """Return the folder of logs, process ids, keys and locks: RLT_HOME, else ~/.rlt. See
    `private_folder`."""
    return Path(os.environ.get("RLT_HOME") or "~/.rlt").expanduser().absolute()


def private_folder(folder: Path) -> Path:
    """Create a folder with mode 0700, or give it this mode.

    Raises UserError if it belongs to another user, OSError if it cannot be made.
    """
    folder = folder.parent.resolve() / folder.name if folder != home() else folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(
            f"{folder} is not a folder of this user; remove it, or set RLT_HOME to a folder of "
            "your own"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def write_private(file: Path, text: str) -> None:
    """Write a file with mode 0600."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(text)
