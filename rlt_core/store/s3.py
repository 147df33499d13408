"""The connection to S3: credentials, time-outs, and errors in words.

Credentials, endpoint and region are found by botocore: AWS_* variables, the profile that
AWS_PROFILE names, a container's or machine's role. They stay inside the client: no root, path,
manifest, message or cache ever contains one.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.client import HTTPException, IncompleteRead
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import s3fs
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError
from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

from rlt_core.errors import UserError

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
ATTEMPTS = 4
"""Attempts at one request, with growing pauses: about 5 s for a server that does not listen."""
CONNECTIONS = 64

_UNREACHABLE = (
    boto.ConnectionError, boto.HTTPClientError, FSTimeoutError, TimeoutError, ConnectionError,
    aiohttp.ClientError, HTTPException,
)  # fmt: skip
_TRANSLATED = (boto.BotoCoreError, boto.ClientError, OSError, ValueError, ResponseParserError)
_REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_ROOT = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,254})((?:/(?!\.{1,2}(?:/|$))[^/@?#]+)*)/*")


class Refused(Exception):
    """The condition of a conditional write or delete does not hold."""


class Unsupported(Exception):
    """The server does not support this kind of request."""


class Unreachable(UserError):
    """The server does not answer or is overloaded; it may answer later."""


class Garbled(Unreachable):
    """Bytes were cut or altered on their way to or from the server."""


class _Fault(NamedTuple):
    """What is wrong and how to fix it, by the code of a server's error or, where a server did not
    answer, by the type of the client's."""

    codes: str
    types: tuple[type[Exception], ...]
    raised: type[UserError]
    text: str


_FAULTS = (
    _Fault(
        "BadDigest InvalidDigest IncompleteBody XAmzContentSHA256Mismatch "
        "XAmzContentChecksumMismatch",
        (aiohttp.ClientPayloadError, IncompleteRead, boto.IncompleteReadError,
         boto.ResponseStreamingError),
        Garbled,
        "bytes are cut or altered between here and {server}; check the network and proxies, then "
        "try again",
    ),
    _Fault(
        "ServiceUnavailable SlowDown InternalError RequestTimeout 500 502 503",
        _UNREACHABLE,
        Unreachable,
        "no answer from {server}, or it is overloaded. Does it run, is AWS_ENDPOINT_URL (or the "
        "profile) right, and does AWS_CA_BUNDLE name its certificates? Else try again later",
    ),
    _Fault(
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidClientTokenId ExpiredToken "
        "TokenRefreshRequired RequestExpired AccessDenied AllAccessDisabled AccountProblem 403 "
        "Forbidden",
        (boto.NoCredentialsError,),
        UserError,
        "{server} refuses these credentials, or there are none. Check AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile that AWS_PROFILE names; log "
        "in again if they have expired. They need s3:ListBucket, s3:GetObject, s3:PutObject and "
        "s3:DeleteObject on bucket '{bucket}'",
    ),
    _Fault(
        "NoSuchBucket PermanentRedirect AuthorizationHeaderMalformed 301 307",
        (ValueError, ResponseParserError),
        UserError,
        "{server} has no bucket '{bucket}', has it in another region, or is no S3 server. Check "
        "the bucket's name, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL (http://host:port)",
    ),
)  # fmt: skip


def bucket_and_prefix(root: str) -> tuple[str, str]:
    """The two parts of `s3://bucket/prefix`.

    Raises UserError if the root contains anything else, which may be a secret and is not shown.
    """
    if found := _ROOT.fullmatch(root):
        return found[1], found[2].lstrip("/")
    raise UserError(
        "a store is a folder or a bucket and a prefix only (s3://bucket/prefix). Credentials come "
        "from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or from the profile that AWS_PROFILE "
        "names, the server from AWS_ENDPOINT_URL"
    )


def connect() -> s3fs.S3FileSystem:
    """Return the client for the environment; stores of one environment share it."""
    names = sorted(name for name in os.environ if name.startswith("AWS_"))
    return _client(os.getpid(), tuple((name, os.environ[name]) for name in names))


@lru_cache(maxsize=8)
def _client(_pid: int, _environment: tuple[tuple[str, str], ...]) -> s3fs.S3FileSystem:
    fs = s3fs.S3FileSystem(
        skip_instance_cache=True,  # fsspec's own cache does not see that the environment changed
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
            "max_pool_connections": CONNECTIONS,
        },
    )
    fs.retries = 2  # on top of botocore's
    return fs


def arrow(fs: s3fs.S3FileSystem) -> S3FileSystem:
    """Return pyarrow's file system with the same credentials, server and region as this client.

    Temporary credentials (a session's, a role's) are those of this moment.
    """
    meta = fs.s3.meta
    found = sync(fs.loop, fs.session.get_credentials)
    if found is None:
        raise boto.NoCredentialsError
    keys = sync(fs.loop, found.get_frozen_credentials)
    server = urlsplit(meta.endpoint_url)
    return S3FileSystem(
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        session_token=keys.token,
        region=meta.region_name if meta.region_name != "aws-global" else "us-east-1",
        scheme=server.scheme,
        endpoint_override=f"{server.netloc}{server.path}".rstrip("/"),
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )


# ---------------------------------------------------------------- errors
def endpoint(fs: s3fs.S3FileSystem) -> str:
    """Scheme, host and port of the server, without credentials in its URL."""
    client = fs._s3
    url = client.meta.endpoint_url if client else os.environ.get("AWS_ENDPOINT_URL", "AWS")
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "its server"


@contextmanager
def s3_errors(fs: s3fs.S3FileSystem, url: str) -> Iterator[None]:
    """Turn an error of S3 into one UserError that names the store, the cause and the fix.

    Not turned: FileNotFoundError for a missing file, and errors of the local disk.
    """
    try:
        yield
    except (*_TRANSLATED, *_UNREACHABLE) as error:
        answers = (getattr(each, "response", None) for each in (error, error.__cause__))
        said: dict[str, Any] = next((one.get("Error", {}) for one in answers if one), {})
        code = str(said.get("Code", ""))
        if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
            raise
        if isinstance(error, FileExistsError) or code in _REFUSED:
            raise Refused from None
        if code in ("NotImplemented", "501"):
            raise Unsupported from None
        server, bucket = endpoint(fs), url.removeprefix("s3://").split("/")[0]
        for fault in _FAULTS:
            if code in fault.codes.split() if code else isinstance(error, fault.types):
                cause = code or type(error).__name__
                text = fault.text.format(server=server, bucket=bucket)
                raise fault.raised(f"store {url}: {text} ({cause})") from None
        if not code and isinstance(error, OSError):
            raise
        text = f"{server} answered {code}: {said.get('Message', '')}" if code else str(error)
        raise UserError(f"store {url}: {text}") from None
