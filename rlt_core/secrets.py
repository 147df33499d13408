"""Masks this process's secrets in text that leaves it: logs, errors, stored answers.

A server may echo a key in another spelling, so each is looked for in any case, backwards, as
rot13, numbers of its bytes, percent- and backslash-escapes, HTML entities, base64 and base32, also
inside a longer encoded text and broken by spaces, quotes or dashes.
"""

import base64
import codecs
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from rlt_core.printable import printable

SECRETS = (
    "RLT_REFINE_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY",
)  # fmt: skip
"""Environment variables whose values are masked."""
URLS = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
    "RLT_REFINE_BASE_URL", "AWS_ENDPOINT_URL", "PREFECT_API_URL", "HF_ENDPOINT",
)  # fmt: skip
"""Those whose password alone is masked, as in `https://user:password@host`."""
SHORTEST, FEWEST = 8, 4
"""Characters of a value that is masked in every spelling, and of one that is masked only as a word
of its own. A short value of letters alone is not: servers without keys take `none`, `test`, …"""
MASK = "…"
_BREAK = r"[\s\"'+,;&\\:|._*\-\xad\u200b-\u200d\u2060]{0,6}"


def masked(text: str, fewest: int = FEWEST) -> str:
    """Return the text with every spelling of a secret of at least `fewest` characters replaced."""
    secrets = {one for one in _values() if len(one) >= fewest}
    long = sorted((one for one in secrets if len(one) >= SHORTEST), key=len, reverse=True)
    text = _pattern(tuple(long)).sub(MASK, text) if long else text
    for one in secrets.difference(long):
        if not one.isalpha():
            text = re.sub(rf"(?<!\w){re.escape(one)}(?!\w)", MASK, text)
    return text


def _values() -> Iterator[str]:
    """Yield the secrets, and the passwords of `user:password` and of URLs."""
    for name in (*SECRETS, *URLS):
        value = os.environ.get(name, "").strip()
        if name in SECRETS:
            yield from (value, value.partition(":")[2])
        yield value.partition("://")[2].rpartition("@")[0].partition(":")[2]


@lru_cache(maxsize=8)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str]:
    found = [pattern for secret in secrets for pattern in _spellings(secret)]
    return re.compile("|".join(found), re.IGNORECASE)


def _spellings(secret: str) -> Iterator[str]:
    for spelling in (secret, secret[::-1], codecs.encode(secret, "rot13")):
        yield _BREAK.join(map(_character, spelling))
    for encode, bytes_in_group, bits in ((base64.b64encode, 3, 6), (base64.b32encode, 5, 5)):
        for offset in range(bytes_in_group):
            yield _BREAK.join(_inside(secret.encode(), encode, offset, bits))


def _character(character: str) -> str:
    """A character, or its UTF-8 bytes as hexadecimal, octal or decimal numbers, or an entity."""
    code = ord(character)
    hexadecimal = "".join(
        rf"(?:%(?:25)*|=|\\+x|0x|&\#x0*|\\+u00|\\+u\{{0*)?{byte:02x}[;}}]?"
        for byte in character.encode()
    )
    numbers = rf"{hexadecimal}|\\+0?{code:03o}|(?<!\d)0*{code}(?!\d)|&\#0*{code};"
    return rf"(?:{re.escape(character)}|{numbers})"


def _inside(secret: bytes, encode: Callable[[bytes], bytes], offset: int, bits: int) -> list[str]:
    """Patterns of the digits that encode nothing but the secret, after `offset` other bytes."""
    digits = encode(bytes(offset) + secret).decode()
    start, end = -(-8 * offset // bits), 8 * (offset + len(secret)) // bits
    either = {"+": r"(?:[+\-]|%2b)", "/": r"(?:[/_]|%2f)"}
    return [either.get(digit, re.escape(digit)) for digit in digits[start:end]]


class CleanRecord(logging.LogRecord):
    """A log record without secrets and without sequences that a terminal would execute."""

    def getMessage(self) -> str:
        return printable(masked(super().getMessage()))


def clean_logs(record: type[CleanRecord] = CleanRecord) -> None:
    """Let all log records of this process be clean, their tracebacks too."""
    logging.setLogRecordFactory(record)
    logging.Formatter.formatException = _format_exception  # type: ignore[method-assign, assignment]


_plain_exception = logging.Formatter.formatException


def _format_exception(formatter: logging.Formatter, info: object) -> str:
    return printable(masked(_plain_exception(formatter, info)))  # type: ignore[arg-type]
