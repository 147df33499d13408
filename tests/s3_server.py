"""A real S3 server on loopback for tests."""

from functools import partial

from infra import s3_server

BUCKET = "rlt-tests"
serve = partial(s3_server.serve, bucket=BUCKET)
