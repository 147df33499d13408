"""`python -m flows.server.one_writer server start`: Prefect's command with another way into SQLite.

Prefect's transactions begin as readers. One that writes after another has committed is refused at
once, whatever the timeout (SQLITE_BUSY_SNAPSHOT), and the client gets 503. Transactions that begin
as writers wait for each other.
"""

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration

if __name__ == "__main__":
    begin = AioSqliteConfiguration.begin_transaction
    AioSqliteConfiguration.begin_transaction = (  # type: ignore[method-assign]
        lambda self, session, with_for_update=True: begin(self, session, with_for_update=True)
    )
    app()
