"""The Prefect server that PREFECT_API_URL names, in the environment or in Prefect's profile."""

import os

from flows.server.local import current
from rlt_core.errors import UserError

LOGIN = "PREFECT_API_AUTH_STRING"


def require_server() -> str | None:
    """Return the server's address, None if none is named. Raises UserError if it does not answer or
    refuses the login."""
    up, named = current(), os.environ.get("PREFECT_API_URL")
    if up and named and LOGIN not in os.environ:
        # Else Prefect would send the login of `rlt up`, from its profile, to any server.
        os.environ[LOGIN] = up.login()[LOGIN] if named == up.api else ""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return None
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            raise UserError(
                f"PREFECT_API_URL={url}: no Prefect server answers ({error}); start it, or, to run "
                "without a server, unset the variable (`prefect config unset PREFECT_API_URL`)"
            )
        try:
            client.api_version()  # unlike the health check, for users only
        except httpx.HTTPStatusError as refused:
            raise UserError(
                f"PREFECT_API_URL={url}: the server refuses the login "
                f"({refused.response.status_code}); set {LOGIN}=USER:PASSWORD"
            ) from None
    return url
