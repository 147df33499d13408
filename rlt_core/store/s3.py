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
from typing import Any
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
_BUSY = {"ServiceUnavailable", "SlowDown", "InternalError", "RequestTimeout", "500", "502", "503"}
_REFUSED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_GARBLED = {
    "BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}  # fmt: skip
_CUT = (
    aiohttp.ClientPayloadError, IncompleteRead, boto.IncompleteReadError,
    boto.ResponseStreamingError,
)  # fmt: skip
_ANSWERS = {
    ("NoSuchBucket",): "{server} has no bucket '{bucket}'. Make it there, or name another",
    ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"): (
        "{server} does not know these credentials ({code}). Check AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the profile that AWS_PROFILE names"
    ),
    ("ExpiredToken", "TokenRefreshRequired", "RequestExpired"): (
        "the credentials for {server} have expired ({code}); log in again"
    ),
    ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"): (
        "{server} refuses this to these credentials ({code}). They need s3:ListBucket, "
        "s3:GetObject, s3:PutObject and s3:DeleteObject on bucket '{bucket}'"
    ),
    ("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307"): (
        "bucket '{bucket}' is in another region ({code}); set AWS_DEFAULT_REGION to it"
    ),
    ("RequestTimeTooSkewed",): (
        "the clocks of this machine and of {server} differ too much; set this one's"
    ),
}
"""Error codes of a server -> what is wrong and how to fix it."""


class Refused(Exception):
    """The condition of a conditional write or delete does not hold."""


class Unsupported(Exception):
    """The server does not support this kind of request."""


class Unreachable(UserError):
    """The server does not answer or is overloaded; it may answer later."""


class Garbled(Unreachable):
    """Bytes were cut or altered on their way to or from the server."""


def bucket_and_prefix(root: str) -> tuple[str, str]:
    """The two parts of `s3://bucket/prefix`.

    Raises UserError if the root contains anything else, which may be a secret and is not shown.
    """
    if not root.startswith("s3://"):
        raise UserError(f"a store is a folder or s3://bucket/prefix, not {root.split('://')[0]}://")
    place = root.removeprefix("s3://").rstrip("/")
    if re.search(r"[@?#]", place) or ":" in place.split("/")[0]:
        raise UserError(
            "a store's address is a bucket and a prefix only (s3://bucket/prefix). "
            "Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or from the "
            "profile that AWS_PROFILE names, the server from AWS_ENDPOINT_URL"
        )
    bucket, _, prefix = place.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise UserError(f"s3://{place}: {bucket!r} cannot be the name of a bucket")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise UserError(f"s3://{place}: the prefix has an empty or relative part")
    return bucket, prefix


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
def _response(error: BaseException) -> dict[str, Any]:
    """The server's error, `Code` and `Message`; empty if it did not answer."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if response:
            return dict(response.get("Error", {}))
    return {}


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
        said = _response(error)
        code = str(said.get("Code", ""))
        if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
            raise
        if isinstance(error, FileExistsError) or code in _REFUSED:
            raise Refused from None
        if code in ("NotImplemented", "501"):
            raise Unsupported from None
        server = endpoint(fs)
        if code in _GARBLED or isinstance(error, _CUT):
            raise Garbled(
                f"store {url}: bytes are cut or altered between here and {server} "
                f"({code or error}); check the network and proxies, then try again"
            ) from None
        if code in _BUSY or (not code and isinstance(error, _UNREACHABLE)):
            raise Unreachable(f"store {url}: {_unreachable(error, code, server)}") from None
        if not code and isinstance(error, OSError):
            raise
        answer = f"{server} answered {code}: {said.get('Message', '')}"
        for codes, known in _ANSWERS.items():
            if code in codes:
                bucket = url.removeprefix("s3://").split("/")[0]
                answer = known.format(server=server, code=code, bucket=bucket)
        raise UserError(f"store {url}: {answer if code else _unsent(error, server)}") from None


def _unreachable(error: BaseException, code: str, server: str) -> str:
    if code:
        return f"{server} is overloaded or in trouble ({code}); try again later"
    if isinstance(error, boto.SSLError):
        return f"no trusted connection to {server}; AWS_CA_BUNDLE names a file of certificates"
    return f"no answer from {server}. Does it run, and is AWS_ENDPOINT_URL (or the profile) right?"


def _unsent(error: BaseException, server: str) -> str:
    """Why a request was not sent, or its answer not understood."""
    if isinstance(error, boto.NoCredentialsError):
        return (
            "no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to "
            "a profile of ~/.aws/credentials"
        )
    if isinstance(error, ValueError):
        return "AWS_ENDPOINT_URL (or the profile's endpoint_url) is not http://host:port"
    if isinstance(error, ResponseParserError):
        return f"{server} does not answer like an S3 server; check AWS_ENDPOINT_URL"
    return str(error)
