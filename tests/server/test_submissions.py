"""The browser sends a submission once: a server that answers 503 has lost it."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx

from tests.server.conftest import Server

SUBMISSIONS = 60
LATER = {
    "type": "SCHEDULED",
    "state_details": {"scheduled_time": (datetime.now(UTC) + timedelta(days=3)).isoformat()},
}


def test_writers_beside_each_other_are_never_refused(server: Server) -> None:
    user, _, password = server.login["PREFECT_API_AUTH_STRING"].partition(":")
    with server.client() as client:
        deployment = client.read_deployment_by_name("rlt/teacher-grpo").id

    def submit_and_delete(number: int) -> list[int]:
        with httpx.Client(base_url=server.api, auth=(user, password), timeout=120) as browser:
            body = {"parameters": {"profile": "tiny"}, "state": LATER}
            made = browser.post(f"/deployments/{deployment}/create_flow_run", json=body)
            if made.status_code != 201:
                return [made.status_code]
            return [201, browser.delete(f"/flow_runs/{made.json()['id']}").status_code]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(submit_and_delete, range(SUBMISSIONS)))
    assert answers == [[201, 204]] * SUBMISSIONS
    assert "database is locked" not in (server.home / "server.log").read_text()
