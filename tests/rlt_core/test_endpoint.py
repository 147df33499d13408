"""Requests reach a real server on loopback, through every fault that it can have."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlt_core.config import ScratchModel
from rlt_core.config.endpoint import Endpoint, RefinementConfig
from rlt_core.endpoint import FIXES, KEY, ChatAnswer, ask_all, chat_request, hash_of
from rlt_core.errors import Stopped, UserError
from rlt_core.llm_traces import fault_of
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from tests.chat_server import KEY as SECRET
from tests.chat_server import Reply, completion, error, serve

CONFIG = RefinementConfig(name="refined", model="m")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def requests(n: int) -> dict[str, dict[str, Any]]:
    texts = ({"question": f"q{i}", "solution": "s", "trace": f"t{i}"} for i in range(n))
    return {hash_of(one): one for one in (chat_request(CONFIG, 0, **each) for each in texts)}


def ask(
    url: str, n: int = 1, progress: Progress | None = None, **settings: Any
) -> list[ChatAnswer]:
    kept: list[ChatAnswer] = []
    endpoint = Endpoint(base_url=url, **settings)
    ask_all(requests(n), endpoint, kept.extend, progress or Progress())
    return kept


FAULTS: dict[str, Reply | None] = {
    "429": error(429, retry_after="1"),
    "500": error(500),
    "503": error(503),
    "dropped connection": None,
    "malformed JSON": (200, {}, b'{"choices": [{'),
    "not a completion": (200, {}, b'{"choices": []}'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_tried_again(fault: str) -> None:
    with serve(lambda n, body: FAULTS[fault] if n == 0 else completion("better")) as server:
        assert [answer.text for answer in ask(server.url)] == ["better"]
    assert len(server.seen) == 2 and server.seen[0] == server.seen[1]
    assert server.keys == [f"Bearer {SECRET}"] * 2
    if fault == "429":
        assert server.times[1] - server.times[0] >= 0.99


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_one_error_without_the_key(fault: str) -> None:
    with (
        serve(lambda n, body: FAULTS[fault]) as server,
        pytest.raises(UserError, match="no answer, after at most 1 retries") as raised,
    ):
        ask(server.url, retries=1)
    assert SECRET not in str(raised.value) and raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("status", "said"), [(401, "key is refused; set RLT_REFINE_KEY"), (404, "the model 'm'")]
)
def test_what_no_retry_fixes_is_requested_once(status: int, said: str) -> None:
    with serve(lambda n, body: error(status)) as server, pytest.raises(UserError) as raised:
        ask(server.url)
    assert said in str(raised.value) and SECRET not in str(raised.value)
    assert len(server.seen) == 1


def test_a_text_that_cannot_be_stored_stops_no_other_request() -> None:
    bad = b'{"choices": [{"message": {"content": "\\ud800"}}]}'
    with serve(lambda n, body: (200, {}, bad) if n == 0 else completion("better")) as server:
        answers = ask(server.url, 2, concurrency=1)
    assert [answer.rejected for answer in answers] == ["the reply's text is not Unicode", None]


def refusal(field: str, code: str = "unsupported_parameter") -> Reply:
    said = {"error": {"message": "no", "code": code, "param": field}}
    return 400, {}, json.dumps(said).encode()


def test_a_limit_of_another_name_is_sent_where_the_endpoint_wants_it() -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        return refusal("max_tokens") if "max_tokens" in body else completion("better")

    with serve(reply) as server:
        answers = ask(server.url, 3, concurrency=1, retries=0)
        assert [answer.text for answer in answers] == ["better"] * 3
        assert [body.get("max_completion_tokens") for body in server.seen] == [None] + [16384] * 3
    assert {answer.request for answer in answers} == requests(3).keys()


@pytest.mark.parametrize("field", ["seed", "top_p", "temperature", "max_tokens", "x"])
def test_a_refused_value_is_named_with_the_fix(field: str) -> None:
    with serve(lambda n, body: refusal(field, "unsupported_value")) as server:
        (answer,) = ask(server.url)
    assert answer.rejected and answer.rejected.startswith("400 unsupported_value")
    assert (f"`{field}`" in answer.rejected) == (field in FIXES) and len(server.seen) == 1


def test_no_server_listens() -> None:
    with serve(lambda n, body: None) as server:
        url = server.url
    with pytest.raises(UserError, match="no answer, after at most 0 retries"):
        ask(url, retries=0)


def test_slow_answers_time_out_and_are_tried_again() -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        time.sleep(1.5 if n == 0 else 0)
        return completion("better")

    with serve(reply) as server:
        assert ask(server.url, timeout_s=0.5)[0].text == "better"
        assert len(server.seen) == 2


def test_requests_under_way_and_pace_are_bounded() -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.1)
        return completion("better")

    with serve(reply) as server:
        assert len(ask(server.url, 9, concurrency=3)) == 9
        assert server.most_under_way == 3
    with serve(reply) as server:
        ask(server.url, 4, requests_per_minute=300)
        assert server.times[-1] - server.times[0] >= 0.55


def test_a_stop_keeps_what_was_answered() -> None:
    kept: list[ChatAnswer] = []
    with serve(lambda n, body: completion("better")) as server:
        endpoint = Endpoint(base_url=server.url, concurrency=2)
        with pytest.raises(Stopped):
            ask_all(requests(50), endpoint, kept.extend, Progress(should_stop=lambda: bool(kept)))
        assert len({answer.request for answer in kept}) == len(server.seen) < 50


def test_what_cannot_be_used_is_named() -> None:
    format = load_format("tiny")
    for answer, reason in [
        (ChatAnswer(request="", text=" \n"), "empty"),
        (ChatAnswer(request="", refusal="I will not"), "refused"),
        (ChatAnswer(request="", text="half", finish_reason="length"), "cut"),
        (ChatAnswer(request="", text=f"a{format.explanation_close}b"), "tagged"),
        (ChatAnswer(request="", rejected="too long"), "rejected"),
    ]:
        assert (fault_of(answer, format) or [""])[0] == reason
    assert fault_of(ChatAnswer(request="", text="good", finish_reason="stop"), format) is None


def test_texts_with_braces_stay_as_they_are() -> None:
    asked = chat_request(CONFIG, 0, question="{trace}", solution="{x}", trace="{question}")
    user = asked["messages"][-1]["content"]
    assert user == CONFIG.template.replace("{question}", "\0").replace("{trace}", "{question}") \
        .replace("{solution}", "{x}").replace("\0", "{trace}")  # fmt: skip


def test_saved_answers_are_found_by_later_versions() -> None:
    asked = chat_request(CONFIG, 0, question="q", solution="s", trace="t")
    assert hash_of(asked)[:16] == "0c1dce452d8af38e"


def test_bad_settings_name_the_variable() -> None:
    good = {"RLT_REFINE_BASE_URL": "http://h/v1"}
    assert Endpoint.of_environment(good).base_url == "http://h/v1"
    for name, value in [("BASE_URL", ""), ("BASE_URL", "ftp://h"), ("CONCURRENCY", "0"),
                        ("TIMEOUT_S", "inf"), ("PROMPT_PRICE", "nan"),
                        ("BASE_URL", f"http://me:{SECRET}@h/v1")]:  # fmt: skip
        with pytest.raises(UserError, match=f"RLT_REFINE_{name}") as raised:
            Endpoint.of_environment(good | {f"RLT_REFINE_{name}": value})
        assert SECRET not in str(raised.value)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail("transformers serve does not listen")


@pytest.mark.slow
def test_transformers_serve_answers(tmp_path: Path) -> None:
    """A tiny random model behind the real server; its words are noise, cut at the limit."""
    command = shutil.which("transformers", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the command transformers is not installed")
    format, folder = load_format("tiny"), str(tmp_path / "model")
    tokenizer = tiny_tokenizer(format)
    save_model(new_model(ScratchModel(), tokenizer), tokenizer, Path(folder))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([command, "serve", folder, "--port", str(port), "--device", "cpu"])
    try:
        _wait_for(port, process)
        asked = CONFIG.model_copy(
            update={"model": folder, "max_tokens": 8, "template": "{trace}", "system": ""}
        )
        request = chat_request(asked, 0, question="1+1", solution="2", trace="1+1")
        kept: list[ChatAnswer] = []
        endpoint = Endpoint(base_url=f"http://127.0.0.1:{port}/v1", retries=0)
        ask_all({"1": request}, endpoint, kept.extend, Progress())
    finally:
        process.terminate()
        process.wait(20)
    (answer,) = kept
    assert answer.rejected is None and answer.prompt_tokens and answer.completion_tokens
    assert answer.completion_tokens <= 8
