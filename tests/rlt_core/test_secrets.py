"""No spelling of a key reaches a log, an error or a stored answer."""

import base64
import codecs
import html
import json
import logging
import random
import string
import time
import urllib.parse

import pytest

from rlt_core.config.endpoint import Endpoint
from rlt_core.endpoint import KEY, ChatAnswer, ask_all
from rlt_core.errors import UserError
from rlt_core.progress import Progress
from rlt_core.secrets import CleanRecord, clean_logs, masked
from tests.chat_server import Reply, completion, serve

SECRET = "sk-Proj/Key+of=the_Test.7351"
SPELLINGS = {
    "plain": SECRET,
    "capitals": SECRET.upper(),
    "swapped case": SECRET.swapcase(),
    "backwards": SECRET[::-1],
    "rot13": codecs.encode(SECRET, "rot13"),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 of a header": base64.b64encode(f"Bearer {SECRET} ok".encode()).decode(),
    "base64 of user and key": base64.urlsafe_b64encode(f"u:{SECRET}".encode()).decode(),
    "base32": base64.b32encode(f"k={SECRET}".encode()).decode().lower(),
    "hex": SECRET.encode().hex(),
    "hex with spaces": SECRET.encode().hex(" ").upper(),
    "hex with colons": SECRET.encode().hex(":"),
    "octal": "".join(f"\\{byte:03o}" for byte in SECRET.encode()),
    "list of numbers": json.dumps(list(SECRET.encode())),
    "quoted-printable": "".join(f"={byte:02X}" for byte in SECRET.encode()),
    "dashes": "-".join(SECRET),
    "soft hyphens": "\xad".join(SECRET),
    "percent": urllib.parse.quote(SECRET, safe=""),
    "percent of all": "".join(f"%{byte:02x}" for byte in SECRET.encode()),
    "percent twice": urllib.parse.quote(urllib.parse.quote(SECRET, safe=""), safe=""),
    "JSON": json.dumps(json.dumps(SECRET)).replace("/", "\\/"),
    "JSON escapes": "".join(f"\\u{ord(each):04x}" for each in SECRET),
    "bytes": "".join(f"\\x{ord(each):02x}" for each in SECRET),
    "HTML": html.escape(SECRET).replace("+", "&#43;").replace("/", "&#x2F;"),
    "spaced": " ".join(SECRET),
    "over two lines": f"{SECRET[:11]}\r\n  {SECRET[11:]}",
    "joined strings": f'"{SECRET[:9]}" + "{SECRET[9:]}"',
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def letters(text: str) -> str:
    return "".join(each for each in text if each.isalnum())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_masked(spelling: str) -> None:
    quoted = SPELLINGS[spelling]
    hidden = masked(f"before {quoted} after")
    assert hidden.startswith("before ") and hidden.endswith(" after") and "…" in hidden
    left = letters(hidden[6:-5])
    assert len(left) <= 16 and letters(quoted)[8:-8] not in left  # base64 of what is around it


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING"])
def test_keys_of_the_store_and_of_the_server_are_masked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "admin:another-Secret/9")
    assert masked("x another-secret%2F9 y") == "x … y"
    assert masked(base64.b64encode(b"admin:another-Secret/9").decode()).count("…") == 1


def test_other_text_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "The key of the test is 7351; sk-Proj and base64 are words. none EMPTY"
    assert masked(words) == words
    monkeypatch.setenv(KEY, "none")  # a server without keys
    assert masked(f"none {SECRET}") == f"none {SECRET}"


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        (KEY, "k-42", "k-42"), (KEY, "abc1234", "abc1234"), (KEY, "1234567", "1234567"),
        ("PREFECT_API_AUTH_STRING", "team:pw7!", "pw7!"),
        ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://rlt:p@ss1@db:5432/rlt", "p@ss1"),
        ("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://rlt:a-long-1@db:5432/rlt",
         "a-long-1"),
        ("https_proxy", "http://me:pr0xy@proxy:3128", "pr0xy"),
        ("AWS_ENDPOINT_URL", "https://me:another-pw@host", "another-pw"),
    ],
)  # fmt: skip
def test_a_short_secret_is_masked_as_a_word(
    name: str, value: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert masked(f"key={secret}, '{secret}' and {value}.").count("…") == 3
    others = f"x{secret}x of team rlt at postgresql://db:5432/rlt, http://proxy:3128"
    assert len(secret) >= 8 or masked(others) == others
    logged = CleanRecord("x", logging.INFO, "f", 1, "said %s", (secret,), None)
    assert logged.getMessage() == "said …"


@pytest.mark.parametrize("value", ["none", "EMPTY", "test", "ollama", "k-1", "abc"])
def test_a_placeholder_is_no_secret(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, value)
    assert masked(f"the task {value}") == f"the task {value}"


def test_an_answer_keeps_words_that_are_like_a_short_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "12345")
    with serve(lambda n, _: completion("it is 12345")) as server:
        assert ask(server.url)[0].text == "it is 12345"


def test_long_texts_take_no_time() -> None:
    rng = random.Random(0)
    text = "".join(rng.choices(string.ascii_letters + string.digits + " +/%\\", k=200_000))
    start = time.perf_counter()
    assert masked(text) == text
    assert masked("sk-Proj" * 30_000 + " " * 30_000).count("…") == 0
    assert time.perf_counter() - start < 5


def test_log_lines_and_tracebacks_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(f"the server said {SPELLINGS['base64']}\x1b[2J")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = CleanRecord("x", logging.ERROR, "f", 1, "\x1b]0;%s", (SPELLINGS["hex"],), info)
    assert record.getMessage() == "␛]0;…"
    before, plain = logging.getLogRecordFactory(), logging.Formatter.formatException
    try:
        clean_logs()
        shown = logging.Formatter().format(record)
    finally:
        logging.setLogRecordFactory(before)
        logging.Formatter.formatException = plain  # type: ignore[method-assign]
    assert "said …Q==␛[2J" in shown


def ask(url: str, retries: int = 0) -> list[ChatAnswer]:
    kept: list[ChatAnswer] = []
    request = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
    ask_all({"1": request}, Endpoint(base_url=url, retries=retries), kept.extend, Progress())
    return kept


def echo(status: int) -> Reply:
    """An answer that quotes the key in every spelling, in its body and its headers."""
    every = " ".join(SPELLINGS.values())
    said = {"error": {"message": every, "type": every, "code": SPELLINGS["hex"], "param": every}}
    flat = {f"x-{number}": value for number, value in enumerate(every.split())}
    return status, flat, json.dumps(said).encode()


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413, 418, 422, 429, 500, 503])
def test_of_a_failed_request_only_status_and_code_are_kept(status: int) -> None:
    shown = ""
    with serve(lambda n, body: echo(status)) as server:
        try:
            shown = repr(ask(server.url))
        except UserError as error:
            shown = str(error)
    assert str(status) in shown
    for quoted in SPELLINGS.values():
        assert quoted not in shown and letters(quoted)[8:24] not in letters(shown)


def test_a_known_code_is_shown() -> None:
    body = json.dumps({"error": {"message": SECRET, "code": "context_length_exceeded"}}).encode()
    with serve(lambda n, _: (400, {}, body)) as server:
        assert ask(server.url)[0].rejected == "400 context_length_exceeded"


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_answer_that_quotes_the_key_is_stored_without_it(spelling: str) -> None:
    quoted = SPELLINGS[spelling]
    with serve(lambda n, _: completion(f"it is {quoted}", quoted, quoted)) as server:
        [answer] = ask(server.url)
    for text in (answer.text, answer.finish_reason, answer.refusal):
        assert text and "…" in text and letters(quoted)[8:-8] not in letters(text)


REPLIES = [
    b"null", b"[]", b'"x"', b"{}", b'{"choices": {}}', b'{"choices": [null]}', b'{"choices": [1]}',
    b'{"choices": [{"message": null}]}', b'{"choices": [{"message": {"content": {"a": 1}}}]}',
    b'{"choices": [{"message": {"content": "x"}, "finish_reason": 3}]}',
    b'{"choices": [{"message": {"content": "x"}}], "usage": 7}',
    b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}',
]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_what_is_no_chat_completion_is_one_error(reply: bytes) -> None:
    with serve(lambda n, body: (200, {}, reply)) as server, pytest.raises(UserError, match="not a"):
        ask(server.url)
