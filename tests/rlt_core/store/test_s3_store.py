"""A store on S3: credentials, a network, a server, other machines."""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server.seaweedfs import S3Access
from infra.faults.s3 import ONLY, FailingS3
from rlt_core.errors import UserError
from rlt_core.sql.views import connect
from rlt_core.store import Lease, Ref, Store, s3_files
from rlt_core.store import lease as leases
from tests.rlt_core.store.attempts import KEY, attempt_with, manifest_of, race
from tests.s3_server import answering
from tests.sample_store import commit, score_row

TOPS = ("artifacts", "refs", "work")

pytestmark = pytest.mark.parametrize("store_root", ["s3"], indirect=True)


# ---------------------------------------------------------------- commits
def test_one_of_several_processes_that_commit_at_once_wins_and_all_see_it(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    count = 2
    start, results = context.Barrier(count), context.Queue()
    children = [
        context.Process(target=race, args=(str(store), number, start, results))
        for number in range(count)
    ]
    for child in children:
        child.start()
    seen = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    (winner,) = [number for number, won, _, _ in seen if won]
    assert {(attempt, text) for _, _, attempt, text in seen} == {(seen[0][2], str(winner))}
    assert [manifest.attempt for manifest in store.manifests()] == [seen[0][2]]
    assert store.orphans() == []


class Proxy(FailingS3):
    """Disturbs chosen requests."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, rate=0, seed=0, timeouts=False)
        self.next: dict[str, str] = {}
        """Part of a path -> fault of the next request for it."""
        self.away = False
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def fault(self, method: str, path: str) -> str:
        if self.away:
            return "reset"
        for part, fault in self.next.items():
            if part in path and method == ONLY.get(fault, method):
                return self.next.pop(part)
        return ""


@pytest.fixture
def proxy(store_root: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3_access.endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made
        made.shutdown()


def test_a_create_whose_acknowledgement_was_lost_is_known_as_our_own(
    proxy: Proxy, store_root: str
) -> None:
    store = Store(store_root)
    proxy.next = {"/refs/x": "lost answer"}
    assert store.files.create("refs/x", b"mine")
    assert proxy.next == {}
    assert not store.files.create("refs/x", b"another's")
    proxy.next = {"/refs/x": "lost answer"}
    assert store.files.read("refs/x") == b"mine"


def test_the_end_of_long_work_waits_for_a_server_that_is_away(
    proxy: Proxy, store_root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(s3_files.time, "sleep", lambda _: setattr(proxy, "away", False))
    store = Store(store_root)
    attempt = attempt_with(store, "long work")
    proxy.away = True
    assert store.commit(manifest_of(store, attempt)).attempt == attempt.id
    assert "no answer" in caplog.text


@pytest.mark.parametrize("code", ["BadDigest", "XAmzContentSHA256Mismatch"])
def test_bytes_that_are_altered_on_the_way_are_sent_again(
    proxy: Proxy, store_root: str, code: str, tmp_path: Path
) -> None:
    store = Store(store_root)
    (tmp_path / "file").write_bytes(b"content")
    store.files.write("first", b"")
    for path, send in (
        ("refs/create", lambda path: store.files.create(path, b"content")),
        ("refs/write", lambda path: store.files.write(path, b"content")),
        ("refs/put", lambda path: store.files.put(tmp_path / "file", path)),
    ):
        proxy.next = {path: code}
        send(path)
        assert proxy.next == {} and store.files.read(path) == b"content"


def test_a_download_that_is_cut_is_repeated(
    proxy: Proxy, store_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, content = Store(store_root), b"content of a file " * 100
    store.files.write("refs/x", content)
    for read in (
        lambda: store.files.read("refs/x"),
        lambda: store.files.fetch("refs/x", len(content), tmp_path / "x"),
    ):
        proxy.next = {"refs/x": "truncated"}
        read()
        assert proxy.next == {}
    assert store.files.read("refs/x") == (tmp_path / "x").read_bytes() == content
    get, calls = store.files.fs.get_file, []

    def shorter(*arguments: object, **more: object) -> None:
        """A proxy that cuts a file and says so in the answer's length."""
        get(*arguments, **more)
        calls.append(1)
        if len(calls) < s3_files.TRANSFERS:
            os.truncate(arguments[1], 7)

    monkeypatch.setattr(store.files.fs, "get_file", shorter)
    store.files.fetch("refs/x", len(content), tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == content
    with pytest.raises(UserError, match="1800 bytes, 9 when committed"):
        store.files.fetch("refs/x", 9, tmp_path / "z")


@pytest.mark.parametrize(
    ("status", "body"), [(200, ""), (501, "<Error><Code>NotImplemented</Code></Error>")]
)
def test_a_server_that_ignores_the_condition_of_a_create_is_refused_at_first_use(
    store_root: str, status: int, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(status, body) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = Store(store_root)
        for use in (Lease(store.files, KEY).__enter__, store.files.require_writable):
            with pytest.raises(UserError, match="If-None-Match") as refused:
                use()
            assert url in str(refused.value) and "\n" not in str(refused.value)


def test_the_condition_of_a_create_is_checked_once(store: Store) -> None:
    sent: list[str] = []
    store.files.fs.s3.meta.events.register(
        "before-send.s3.PutObject", lambda request, **_: sent.append(request.url)
    )
    for number in range(3):
        assert Store(str(store)).files.create(f"refs/{number}", b"x")
    assert len(sent) == 5
    assert store.files.names("") == ["refs"]


# ---------------------------------------------------------------- credentials
def test_a_profile_serves_the_store_and_sql(
    store_root: str, s3_access: S3Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_access.environment():
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3_access.endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {s3_access.access_key}\n"
        f"aws_secret_access_key = {s3_access.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(UserError, match="or there are none"):
        Store(store_root).manifests()
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = Store(store_root)
    commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.5)]})
    assert connect(store).sql("select reward from scores").fetchall() == [(-1.5,)]
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"nobody"):
        Store(store_root).manifests()


def test_pyarrow_gets_a_session_token_and_the_endpoint(
    store_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of a session")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org:9000")
    arrow = Store(store_root).files.arrow().__reduce__()[1][0]
    assert arrow["session_token"] == "of a session"
    assert arrow["access_key"] == os.environ["AWS_ACCESS_KEY_ID"]
    assert arrow["secret_key"] == os.environ["AWS_SECRET_ACCESS_KEY"]
    assert (arrow["scheme"], arrow["endpoint_override"]) == ("https", "s3.example.org:9000")
    assert arrow["region"] == "us-east-1"


@pytest.mark.parametrize(
    "root",
    [
        "s3://AKIA:hush-hush@bucket/p", "s3://bucket/p?secret=hush-hush", "s3://bucket/p#hush-hush",
        "s3a://hush-hush@bucket", "https://u:hush-hush@host/bucket", "s3://AKIA:hush-hush/p",
    ],
)  # fmt: skip
def test_a_root_with_anything_but_bucket_and_prefix_is_refused(root: str, store_root: str) -> None:
    with pytest.raises(UserError) as refused:
        Store(root)
    assert "hush-hush" not in str(refused.value)


def test_credentials_are_in_nothing_that_is_written_or_said(
    store: Store, s3_access: S3Access, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "rlt_core")
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    said = []
    with Lease(store.files, KEY):
        manifest = commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})
        store.set_ref("name", manifest.ref)
        store.intact(manifest)
        (store.workspace(KEY).begin("shards", "0") / "x").write_text("x")
        written = [
            store.files.read(f"{top}/{path}") for top in TOPS for path in store.files.walk(top)
        ]
        time.sleep(0.2)
    token = "a-token-to-look-for"
    for name, value in (
        ("AWS_SESSION_TOKEN", token),
        ("AWS_ENDPOINT_URL", f"http://user:{token}@127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", ""),
    ):
        monkeypatch.setenv(name, value)
        for call in (Store(str(store)).manifests, Store(str(store)).files.arrow):
            try:
                call()
            except UserError as error:
                said.append(f"{error!r} {error.__cause__!r}")
    assert said
    copies = [str(path).encode() for path in tmp_path.rglob("*")]
    copies += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    spoken = [*capfd.readouterr(), caplog.text, *said, str(manifest), repr(vars(store.files))]
    everything = b"\n".join([*filter(None, written), *copies, *(text.encode() for text in spoken)])
    for secret in (s3_access.secret_key, s3_access.access_key, token):
        assert secret.encode() not in everything


# ---------------------------------------------------------------- mistakes and faults
def complaint(root: str, steps: int = 3) -> str:
    """The one error of the first steps on a store, which comes soon."""
    started = time.monotonic()
    said = set()
    store = Store(root)
    ref = Ref(kind="model", key=KEY)
    for call in (store.manifests, store.refs, lambda: store.set_ref("x", ref))[:steps]:
        with pytest.raises(UserError) as error:
            call()
        assert error.value.__cause__ is None and error.value.__suppress_context__
        said.add(str(error.value))
    assert time.monotonic() - started < 60
    (only,) = said
    assert only.startswith(f"store {root}: ")
    return only


@pytest.mark.parametrize(
    ("environment", "said", "steps"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "(SignatureDoesNotMatch)", 3),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "(InvalidAccessKeyId)", 3),
        ({"AWS_SECRET_ACCESS_KEY": None}, "AWS_SECRET_ACCESS_KEY", 3),
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None,
             "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"},
            "(NoCredentialsError)", 3,
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "no answer from http://127.0.0.1:1", 1),
        ({"AWS_ENDPOINT_URL": "localhost"}, "http://host:port", 3),
    ],
)  # fmt: skip
def test_a_wrong_environment_is_named(
    store_root: str, environment: dict[str, str | None], said: str, steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    assert said in complaint(store_root, steps)


def test_a_missing_bucket(store_root: str, s3_access: S3Access) -> None:
    assert f"{s3_access.endpoint} has no bucket 'no-such-bucket'" in complaint(
        "s3://no-such-bucket/p",
        steps=2,  # SeaweedFS makes the bucket at the first write
    )


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", "They need s3:ListBucket, s3:GetObject"),
        (400, "ExpiredToken", "log in again"),
        (301, "PermanentRedirect", "AWS_DEFAULT_REGION"),
        (403, "RequestTimeTooSkewed", "answered RequestTimeTooSkewed: hm"),
        (503, "ServiceUnavailable", "try again later"),
        (418, "Teapot", "answered Teapot: hm"),
    ],
)
def test_an_error_of_the_server_is_explained(
    store_root: str, status: int, code: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>hm</Message></Error>"
    with answering(status, body) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert expected in complaint(store_root, steps=1 if status == 503 else 3)


def test_a_server_that_is_not_s3(store_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(404, "<html><p>hello<br></html>") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(UserError, match="S3"):
            Store(store_root).manifests()


# ---------------------------------------------------------------- transfers
def test_large_files_travel_in_parts(store: Store, tmp_path: Path) -> None:
    size = 2 * s3_files.PART_BYTES + 12345
    attempt = attempt_with(store, "small")
    (attempt.out / "large").write_bytes(os.urandom(size))
    folder = f"artifacts/evaluation/{KEY}/{attempt.id}"
    manifest = manifest_of(store, attempt)
    parts: list[str] = []

    def send(request: object, **_: object) -> None:
        if "partNumber" in request.url:
            parts.append(request.url)

    store.files.fs.s3.meta.events.register("before-send.s3", send)
    store.files.put(attempt.out / "large", f"{folder}/large")
    assert len(parts) == 3
    assert store.commit(manifest).attempt == attempt.id
    assert len(parts) == 3, "it was there"
    store.files.fetch(f"{folder}/large", size, tmp_path / "large")
    other = Store(str(store), tmp_path / "other")
    assert other.intact(manifest) and other.verify(manifest) == []


def test_an_upload_goes_on_where_it_stopped(store: Store) -> None:
    attempt = attempt_with(store, "one")
    (attempt.out / "two").write_text("two")
    put, calls = store.files.put, []

    def failing(source: Path, path: str) -> None:
        calls.append(path)
        if path.endswith("two") and len(calls) < 3:
            raise UserError("interrupted")
        put(source, path)

    store.files.put = failing
    with pytest.raises(UserError, match="interrupted"):
        store.commit(manifest_of(store, attempt))
    store.commit(manifest_of(store, attempt))
    assert [path.rsplit("/", 1)[-1] for path in sorted(calls)] == ["file.txt", "two", "two"]


def test_listing_many_artifacts_costs_a_request_each_and_many_at_once(store: Store) -> None:
    count = 100
    template = manifest_of(store, attempt_with(store, "x"))
    for number in range(count):
        ref = template.ref.model_copy(update={"key": f"{number:016}"})
        manifest = template.model_copy(update={"ref": ref})
        store.files.write(
            f"artifacts/evaluation/{ref.key}.json", manifest.model_dump_json().encode()
        )
    sent, under_way, most = 0, 0, 0

    def send(**_: object) -> None:
        nonlocal sent, under_way, most
        sent, under_way = sent + 1, under_way + 1
        most = max(most, under_way)

    def receive(**_: object) -> None:
        nonlocal under_way
        under_way -= 1

    store.files.fs.s3.meta.events.register("before-send.s3", send)
    store.files.fs.s3.meta.events.register("response-received.s3", receive)
    assert len(store.manifests()) == count
    assert sent <= count + 10
    assert most > 4
