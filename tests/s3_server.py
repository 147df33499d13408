"""A real S3 server on loopback for tests, and one that has one answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from infra import s3_server
from tests.http_servers import Handler, serving

BUCKET = "rlt-tests"
serve = partial(s3_server.serve, bucket=BUCKET)


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server with one answer to everything."""

    class Same(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.body()
            self.reply(status, body.encode())

        do_PUT = do_DELETE = do_GET

    with serving(Same) as url:
        yield url
