"""An S3 server on loopback, and a proxy before it that disturbs requests at random."""

import http.client
import http.server
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "faults"
SOON = ("500", "503", "reset", "lost answer", "truncated", "BadDigest")
FAULTS = dict.fromkeys(SOON, 4) | {"timeout": 1}
"""What happens to a request, and how often relative to each other."""
TIMEOUT_S = 25.0
"""More than the client waits for an answer."""
ONLY = {"truncated": "GET", "BadDigest": "PUT"}
CODES = {
    "500": (500, "InternalError"), "503": (503, "SlowDown"), "BadDigest": (400, "BadDigest"),
    "XAmzContentSHA256Mismatch": (400, "XAmzContentSHA256Mismatch"),
}  # fmt: skip


class FailingS3(http.server.ThreadingHTTPServer):
    """A proxy that disturbs a share of the requests, and counts them."""

    daemon_threads = True

    def __init__(self, endpoint: str, rate: float, seed: int, timeouts: bool) -> None:
        super().__init__(("127.0.0.1", 0), Disturbed)
        self.host = endpoint.removeprefix("http://")
        self.counts: Counter[str] = Counter()
        self._rate, self._choice, self._lock = rate, random.Random(seed), threading.Lock()
        self._faults = {fault: n for fault, n in FAULTS.items() if timeouts or fault != "timeout"}

    def fault(self, method: str, path: str) -> str:
        """Return what happens to a request; nothing if it is empty."""
        with self._lock:
            if self._choice.random() > self._rate:
                return ""
            [fault] = self._choice.choices(list(self._faults), list(self._faults.values()))
            if method != ONLY.get(fault, method):
                return ""
            self.counts[fault] += 1
            return fault

    def handle_error(self, *_: object) -> None:
        """A client that went away is no error."""


class Disturbed(http.server.BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    server: FailingS3

    def answer(self) -> None:
        """Pass the request on, or not."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.server.fault(self.command, self.path)
        if fault in CODES:
            status, code = CODES[fault]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
            return self._send(status, {"Content-Length": str(len(text))}, text)
        if fault == "timeout":
            time.sleep(TIMEOUT_S)
        if fault in ("timeout", "reset"):
            return self._reset()
        upstream = http.client.HTTPConnection(self.server.host)
        upstream.request(self.command, self.path, body, dict(self.headers) | {"expect": ""})
        response = upstream.getresponse()
        data, headers = response.read(), dict(response.getheaders())
        upstream.close()
        if fault == "lost answer":
            return self._reset()
        if self.command != "HEAD":
            headers.pop("Transfer-Encoding", None)
            headers["Content-Length"] = str(len(data))
        self._send(response.status, headers, data[: len(data) // (2 if fault else 1)])
        if fault:
            self._reset()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def disturbed(
    endpoint: str, rate: float, seed: int, timeouts: bool = True
) -> Iterator[Counter[str]]:
    """Disturb this share of the requests of S3 clients inside the block; yields the counts."""
    with FailingS3(endpoint, rate, seed, timeouts) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.server_port}"
        try:
            yield proxy.counts
        finally:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            proxy.shutdown()
