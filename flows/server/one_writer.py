"""`python -m flows.server.one_writer server start`: Prefect's command with another way into SQLite.

Prefect's transactions begin as readers. One that writes after another has committed is refused at
once, whatever the timeout (SQLITE_BUSY_SNAPSHOT), and the client gets 503. Transactions that begin
as writers wait for each other.
"""


def wait_for_the_writer() -> None:
    """Let every transaction of this process's Prefect server take SQLite's write lock first."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction
    AioSqliteConfiguration.begin_transaction = (  # type: ignore[method-assign]
        lambda self, session, with_for_update=True: begin(self, session, with_for_update=True)
    )


if __name__ == "__main__":
    from prefect.cli import app

    wait_for_the_writer()
    app()
