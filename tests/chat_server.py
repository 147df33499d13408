"""A chat-completions endpoint on loopback whose faults are scripted."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.http_servers import Handler, serving

KEY = "key-of-the-test-7351"
Reply = tuple[int, dict[str, str], bytes]


def completion(text: str | None, finish: str = "stop", refusal: str | None = None) -> Reply:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    body = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip
    return 200, {}, json.dumps(body).encode()


def error(status: int, **headers: str) -> Reply:
    """An error whose message quotes the key, as endpoints do."""
    said = {"error": {"message": f"no: {KEY}", "type": "t", "code": None, "param": None}}
    return status, headers, json.dumps(said).encode()


@dataclass
class ChatServer:
    """`reply` answers the n-th request (from 0); None drops the connection."""

    reply: Callable[[int, dict[str, Any]], Reply | None]
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serve(reply: Callable[[int, dict[str, Any]], Reply | None]) -> Iterator[ChatServer]:
    server = ChatServer(reply)

    class Chat(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            with server.lock:
                number = len(server.seen)
                server.seen.append(body)
                server.times.append(time.monotonic())
                server.keys.append(self.headers.get("authorization", ""))
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            answer = server.reply(number, body)
            with server.lock:
                server.under_way -= 1
            if answer is None:
                self.close_connection = True
                return
            status, headers, content = answer
            self.reply(status, content, content_type="application/json", **headers)

    with serving(Chat) as address:
        server.url = f"{address}/v1"
        yield server
