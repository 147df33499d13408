"""Credentials for an S3 store, from a block on the Prefect server."""

from __future__ import annotations

import os

from rlt_core.errors import UserError

VARIABLE = "RLT_STORE_BLOCK"
"""Environment variable of a worker: the name of an AWS Credentials block."""


def use_block() -> None:
    """Put the credentials of the block that RLT_STORE_BLOCK names, if it is set, into the
    environment of this process and its children. Raises UserError if the block cannot be loaded."""
    name = os.environ.get(VARIABLE)
    if not name:
        return
    from prefect_aws import AwsCredentials

    try:
        block = AwsCredentials.load(name.removeprefix("aws-credentials/"))
    except ValueError as error:
        raise UserError(f"{VARIABLE}={name}: {error}; make it in the UI under Blocks") from None
    assert isinstance(block, AwsCredentials)
    secret = block.aws_secret_access_key
    values = {
        "AWS_ACCESS_KEY_ID": block.aws_access_key_id,
        "AWS_SECRET_ACCESS_KEY": secret.get_secret_value() if secret else None,
        "AWS_SESSION_TOKEN": block.aws_session_token,
        "AWS_PROFILE": block.profile_name,
        "AWS_REGION": block.region_name,
        "AWS_DEFAULT_REGION": block.region_name,
        "AWS_ENDPOINT_URL": block.aws_client_parameters.endpoint_url,
    }
    os.environ.update({name: value for name, value in values.items() if value})
