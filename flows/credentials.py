"""Credentials of a run on a server: an S3 store's, from a block; none of them is logged."""

import os
import re

from rlt_core.errors import UserError
from rlt_core.secrets import CleanRecord, clean_logs

VARIABLE = "RLT_STORE_BLOCK"
"""Environment variable of a worker: the name of an AWS Credentials block."""


class _RunRecord(CleanRecord):
    """A clean record whose names in brackets (`student-sft[rank-1]`) `prefect … --watch` shows: it
    takes them for rich's markup, unless an invisible word joiner follows the bracket."""

    def getMessage(self) -> str:
        return re.sub(r"\[(?=[a-zA-Z#/@])", "[\u2060", super().getMessage())


def use_block() -> None:
    """Put the credentials of the block that RLT_STORE_BLOCK names, if it is set, into the
    environment of this process and its children, and keep secrets out of this run's logs. Raises
    UserError if the block cannot be loaded."""
    clean_logs(_RunRecord)
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
