"""`rlt traces`: a local page of traces, their rewards and their tokens; `rlt traces export`."""

import os
import socket
import sys
import webbrowser
from contextlib import suppress
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_STORE, StoreOption, check_output, existing_store
from flows.cli.terminal import print
from rlt_core.errors import UserError

PORT = 8484
"""Where the page is, unless the port is taken."""

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@app.callback()
def traces(
    context: typer.Context,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser.")] = False,
    page: Annotated[
        str, typer.Option(metavar="PATH", help="Page to open first, e.g. question/ID.")
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of the page, on this machine alone.", show_default=f"{PORT}, or a free one"
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Show why explanations were rewarded: every token, side by side, in a browser."""
    if context.invoked_subcommand:
        return
    import secrets

    import uvicorn

    from rlt_core.explorer.app import create_app
    from rlt_core.explorer.queries import Library

    library = Library(existing_store(store))
    listener = _listen(port)
    port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
    address = _address(port, token, page)
    print(f"traces of {library.store}: {address}")
    print("for you alone, read-only; stop: Ctrl-C")
    sys.stdout.flush()
    with TemporaryDirectory(prefix="rlt-open-") as folder:  # private: mode 0700
        if not no_open:
            _open(Path(folder) / "traces.html", address)
        config = uvicorn.Config(
            create_app(library, token, port), log_level="warning", access_log=False,
            server_header=False,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


@app.command()
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE.html", help="File to write.")],
    question: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A question's id; may be repeated.")
    ] = None,
    best: Annotated[
        int | None,
        typer.Option(
            min=1, max=50, show_default="3", help="The first questions of the page instead."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write questions as one HTML file that works offline: for a paper's appendix, a colleague."""
    if question and best:
        raise UserError("give --question or --best, not both")
    check_output(file, (".html",))
    from rlt_core.explorer.look import export as write
    from rlt_core.explorer.queries import Library

    library = Library(existing_store(store))
    names = [*dict.fromkeys(question or ())] or library.first_questions(best or 3)
    write(library, names, file)
    print(f"{len(names)} questions: {file}")


def _address(port: int, token: str, page: str) -> str:
    path, _, query = page.lstrip("/").partition("?")
    return f"http://127.0.0.1:{port}/{path}?token={token}{query and f'&{query}'}"


def _listen(port: int | None) -> socket.socket:
    if port is None:
        with suppress(UserError):
            return _listen(PORT)
    try:
        return socket.create_server(("127.0.0.1", port or 0))
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else error
        raise UserError(f"--port {port}: {reason}; choose another") from None


def _open(file: Path, address: str) -> None:
    """Open an address through a private file: the arguments of a process, which a browser is, can
    be read by all users of a machine."""
    file.write_text(f'<meta http-equiv="refresh" content="0; url={escape(address)}">')
    if not webbrowser.open(file.as_uri()):
        print("no browser was found here; open the address above in one")
