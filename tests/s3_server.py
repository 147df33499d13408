"""A real S3 server on loopback for tests, and one that has one answer."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from infra import s3_server

BUCKET = "rlt-tests"
serve = partial(s3_server.serve, bucket=BUCKET)


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server with one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
