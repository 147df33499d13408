"""The explorer's pages on a small store: who may see them, what they say, what is inert."""

import html
import re
from operator import itemgetter
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from rlt_core.config import RewardSpec
from rlt_core.errors import UserError
from rlt_core.explain import explain
from rlt_core.explorer import queries
from rlt_core.explorer.app import create_app
from rlt_core.explorer.compare import compared, name_of, why
from rlt_core.explorer.look import export
from rlt_core.explorer.queries import Library
from rlt_core.prompts.format import load_format
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows
from rlt_core.sql.views import connect
from rlt_core.store import Ref, Store
from tests.rlt_core.test_explain import TRACE, scored
from tests.sample_store import (
    commit,
    eval_row,
    row,
    sample_run,
    score_row,
    scored_training_traces,
)

TOKEN, PORT = "right-token", 8484
QUESTION = "q005"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two teachers explained the same questions; a student learned from the best of one."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    made = sample_run(store, seeds=(0,))
    [_, _], [traces, scores] = (
        scored_training_traces(store, made, variant=variant) for variant in ("rlt", "sft")
    )
    config = {"rank": 1, "order": "reward", "seed": 0, "fits": False, "n_questions": None}
    inputs = {"model": made["base-model"], "traces": traces, "scores": scores}
    student = commit(store, "student-sft[mine]", {}, seed=0, inputs=inputs, config=config)
    answers = [eval_row(q, q % 2 == 0, model=student.ref.key) for q in range(60)]
    commit(store, "evaluation[mine]", {"eval_samples": answers}, seed=0, inputs={"model": student})
    rollouts = [
        _rollout(step, q, sample) for step in (1, 10, 20) for q in (5, 6) for sample in (0, 1)
    ]
    config = {"reward": RewardSpec().model_dump(), "format": load_format("tiny").model_dump()}
    inputs = {"student": made["base-model"], "questions": made["dataset-prep"]}
    commit(store, "teacher-grpo[x]", {"rollouts": rollouts}, seed=0, inputs=inputs, config=config)
    return store


def _rollout(step, question, sample):
    """A completion of two tokens, better at each step; question 6 is not in the last one."""
    lists = [-0.5, -1.0 / step], [-0.5 - sample, -0.25], [-0.25, -0.25]
    names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
    return row(
        "rollouts", stage="teacher-grpo", seed=0, step=step, sample=sample, text="so it is",
        question_id=f"q{question:03}" if step < 20 else "q005", token_ids=[1, 2], closed=True,
        **vars(reward_parts(*lists, True, RewardSpec())), **dict(zip(names, lists, strict=True)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def library(store):
    return Library(store)


@pytest.fixture(scope="module")
def client(library):
    return opened(library)


def opened(library):
    """A browser that has the token."""
    client = TestClient(create_app(library, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")
    client.get("/", params={"token": TOKEN})
    return client


def rows_of(store, sql):
    with connect(store) as connection:
        return connection.sql(sql).to_arrow_table().to_pylist()


def links(page, start):
    return [html.unescape(to) for to in re.findall(rf'href="({start}[^"]*)"', page)]


# ---------------------------------------------------------------- who may see them
PATHS = (
    "/",
    "/traces",
    "/students",
    f"/question/{QUESTION}",
    "/explorer.css",
    "/explorer.js",
    "/x",
)


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, ""),
        ({}, "?token=wrong"),
        ({"cookie": f"rlt-traces-{PORT}=wrong"}, ""),
        ({"host": "evil.example"}, f"?token={TOKEN}"),
        ({"host": "127.0.0.1"}, f"?token={TOKEN}"),
        ({"host": f"evil.example:{PORT}"}, f"?token={TOKEN}"),
        ({"origin": "http://evil.example"}, f"?token={TOKEN}"),
        ({"origin": "null"}, f"?token={TOKEN}"),
        ({"origin": "http://[::1"}, f"?token={TOKEN}"),
        ({"origin": f"https://127.0.0.1:{PORT}"}, f"?token={TOKEN}"),
    ],
)
def test_nobody_else_sees_anything(library, headers, query):
    stranger = TestClient(create_app(library, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")
    for path in PATHS:
        answer = stranger.get(path + query, headers=headers)
        assert answer.status_code == 403 and not answer.cookies, path
        assert QUESTION not in answer.text and "default-src 'none'" in str(answer.headers)


def test_the_token_becomes_a_cookie_and_leaves_the_address(library):
    mine = TestClient(create_app(library, TOKEN, PORT), base_url=f"http://localhost:{PORT}")
    answer = mine.get(f"//evil.example/?q=a&token={TOKEN}", follow_redirects=False)
    assert answer.headers["location"] in ("/evil.example/?q=a", "/?q=a")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert mine.get("/").status_code == 200


def test_nothing_can_be_sent(client):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/").status_code == 405


# ---------------------------------------------------------------- what they say
def test_every_page_answers_and_texts_are_inert(client, store):
    seen, todo = set(), ["/", "/traces", "/students", "/training"]
    while todo and len(seen) < 150:
        path = todo.pop(0)
        if (kind := path.partition("?")[0]) in seen:
            continue
        seen.add(kind)
        page = client.get(path)
        assert page.status_code == 200, path
        assert re.findall(r"<script[^>]*>", page.text) == ['<script src="/explorer.js" defer>']
        assert not re.search(r"<[^>]* (style|on\w+)=", page.text), path
        assert "<b>question" not in page.text
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy
        todo += links(page.text, "/(?:question|trace|student)")
    kinds = {path.split("/")[1] for path in seen}
    assert kinds == {"", "traces", "students", "training", "question", "trace", "student"}
    assert any("&lt;script&gt;alert" in client.get(path).text for path in seen if "/trace/" in path)


def test_a_question_ranks_all_teachers_and_says_why(client, library, store):
    scored = rows_of(
        store,
        f"select * from scores where question_id = '{QUESTION}' and teacher_think_logprobs is not "
        "null order by reward desc",
    )
    rows = library.of_question(QUESTION, None, None)
    assert [row["trace_id"] for row in rows[: len(scored)]] == [r["trace_id"] for r in scored]
    ends = name_of(rows[0]), name_of(rows[-1])
    best, worst = compared(library, rows, {}, *ends)["sides"]
    page = client.get(f"/question/{QUESTION}", params=dict(zip("ab", ends, strict=True))).text
    gap = best.row["reward"] - worst.row["reward"]
    parts = zip(best.found.parts, worst.found.parts, strict=True)
    by_part = {a.name: a.contribution - b.contribution for a, b in parts}
    assert sum(by_part.values()) == pytest.approx(gap)
    lead, solution, *_ = why(best, worst)
    assert lead.startswith("Rank 1 (") and f"beats rank {len(rows)} (" in lead
    assert f"by {gap:.3g}" in lead
    reason = {"mean log p(solution)": "probability of", "penalty": "no end-of-explanation tag"}
    largest = max(by_part.items(), key=itemgetter(1))[0]
    assert reason.get(largest, "surprise the student less") in lead
    assert f"“{worst.found.worst_solution.text}”" in solution
    assert html.escape(lead, quote=False) in html.unescape(page) or lead in html.unescape(page)
    assert why(worst, best) == why(best, worst)
    assert why(best, best) == [
        f"Rank 1 ({best.row['name']}) and rank 1 ({best.row['name']}) have the same reward."
    ]


def test_the_reward_is_replayed_from_the_stored_log_probs(library, client, store):
    rows = library.of_question(QUESTION, None, None)
    changes = {"kl_weight": 0.25, "alpha": 0.5, "kl": "k3", "solution_reduction": "sum"}
    found = compared(library, rows, changes, None, None)
    expected = []
    for one in rows:
        full = library.find("scores", one["run"], one["trace_id"])
        names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
        spec = RewardSpec(**changes)
        expected.append(reward_parts(*(full[name] for name in names), full["closed"], spec).reward)
    rewards = [one["reward"] for one in found["scored"]]
    assert rewards == pytest.approx(sorted(expected, reverse=True))
    assert [one["place"] for one in found["scored"]] == list(range(1, len(rows) + 1))
    assert sorted(one["was"] for one in found["scored"]) == list(range(1, len(rows) + 1))
    shown = found["sides"][0]
    total = sum(part.contribution for part in shown.found.parts)
    assert total == pytest.approx(shown.row["reward"]) and shown.row["reward"] in rewards
    page = client.get(f"/question/{QUESTION}?{urlencode(changes)}").text
    assert f"{rewards[0]:.3f}".replace("-", "\u2212") in page and ">was<" in page
    for wrong in ("alpha=much", "kl=k9", "kl=full", "alpha=nan", "think_extreme=best"):
        answer = client.get(f"/question/{QUESTION}?{wrong}")
        assert answer.status_code == 404 and "Traceback" not in answer.text, wrong


def test_two_chosen_explanations_stand_side_by_side(client, library):
    first, *_, last = library.of_question(QUESTION, None, None)
    query = {"a": f"{last['run']}.{last['trace_id']}", "b": f"{first['run']}.{first['trace_id']}"}
    page = client.get(f"/question/{QUESTION}?{urlencode(query)}&channel=reward").text
    titles = re.findall(r'aria-label="(rank \d+)', page)
    assert titles == [f"rank {len(library.of_question(QUESTION, None, None))}", "rank 1"]
    assert re.search(r'id="by-reward" value="reward" checked', page)


def test_what_was_not_scored_stands_beside_what_was(client, library, store):
    page = client.get(f"/question/{QUESTION}").text
    both = [to for to in links(page, "/question") if to.endswith(".dataset#sides") and "a=" in to]
    assert "best of" in page and page.count(">not scored<") == 1
    compared_page = html.unescape(client.get(both[0].partition("#")[0]).text)
    assert "The data set's own trace has no reward, so rewards cannot be compared" in compared_page
    assert re.search(r'<div class="heat">data set ```trace``` 5</div>', compared_page)
    texts = [row("traces", trace_id="q007-0", question_id="q007", sample=0, text="refined")]
    refined = commit(store, "trace-import[refined]", {"traces": texts})
    library._read_at = -queries.FRESH_S
    client.get("/")
    both = client.get(f"/question/q007?b={refined.ref.key}.q007-0").text
    assert both.count("trace-import[refined]") >= 2 and '<div class="heat">refined</div>' in both


# ---------------------------------------------------------------- lists
@pytest.mark.parametrize(
    ("filters", "condition"),
    [
        ({}, "true"),
        ({"min-reward": "-3", "max-reward": "-2"}, "reward between -3 and -2"),
        ({"max-rank": "2"}, "rank <= 2"),
        ({"min-tokens": "12"}, "think_tokens >= 12"),
        ({"is": ["correct"]}, "correct"),
        ({"is": ["unclosed", "wrong"]}, "not closed and not correct"),
        ({"is": ["too long"]}, "status = 'too_long'"),
        ({"q": "q005"}, "question_id = 'q005'"),
        ({"q": "QUESTION</B> 7"}, "question_id = 'q007'"),
        ({"q": "sft-held-out explains"}, "label = 'trace-scoring[sft-held-out]'"),
        ({"q": "%"}, "false"),
    ],
)
def test_filters_leave_what_they_say(library, client, store, filters, condition):
    expected = rows_of(store, f"select run, trace_id from scores where {condition}")
    found, after, pages = [], 0, 0
    while True:
        page = library.traces(filters, "lowest", after)
        found += page["rows"]
        assert page["total"] == len(expected)
        pages, after = pages + 1, page["after"]
        if after is None:
            break
    assert pages == max(1, -(-len(expected) // queries.PAGE_ROWS))
    names = sorted((row["run"], row["trace_id"]) for row in found)
    assert names == sorted((row["run"], row["trace_id"]) for row in expected)
    rewards = [row["reward"] for row in found if row["reward"] is not None]
    assert rewards == sorted(rewards) and all(
        r["reward"] is not None for r in found[: len(rewards)]
    )
    assert client.get("/traces", params=filters).status_code == 200
    questions = {row["question_id"] for row in found if row["reward"] is not None}
    listed = library.questions(filters, "spread")
    assert {row["question_id"] for row in listed["rows"]} == questions


def test_mistakes_are_one_line_with_the_nearest(client, tmp_path):
    for path, said in {
        "/question/q05": "no scored trace of question q05", "/question/q05?x": "nearest: q005",
        "/trace/none/none": "no trace none", "/student/none": "no evaluation of a model none",
        "/traces?min-reward=high": "min-reward=high: give a number", "/?sort=x": "choose from",
    }.items():  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == 404 and said in html.unescape(answer.text), path
    with pytest.raises(UserError, match="no scored traces in"):
        Library(Store(str(tmp_path)))


# ---------------------------------------------------------------- links
def test_from_a_student_s_answers_to_its_traces_and_back(client, library, store):
    [student] = [one for one in store.manifests() if one.label == "student-sft[mine]"]
    trained = rows_of(
        store, "select s.trace_id from scores s where label = 'trace-scoring[sft]' and rank = 1"
    )
    page = client.get(f"/student/{student.ref.key}").text
    assert "30 correct" in page and "30 wrong" in page
    wrong = client.get(links(page, '/student/[^"]*outcome=wrong')[0]).text
    assert wrong.count('class="answer"') == 30 and 'b-correct"' not in wrong
    [more] = [to for to in links(page, "/student") if "after=" in to]
    assert client.get(more).text.count('class="answer"') == 60 - 50
    traces = client.get(links(page, r"/traces\?")[0]).text
    found = links(traces, "/trace/")
    assert len(found) == len(trained)
    assert f"/student/{student.ref.key}" in client.get(found[0]).text


def test_what_a_student_learned_from_is_shown_as_far_as_it_is_known(tmp_path):
    """Chosen traces were scored under another artifact; older scores were theirs; lost ones."""
    store = Store(str(tmp_path))
    made = sample_run(store, seeds=(0,), ranks=0)
    traces, scores = scored_training_traces(store, made)
    base, texts = made["base-model"], read_rows(store.intact(traces), "traces")
    chosen = {"traces": [one for one in texts if one["sample"] == 2]}
    selected = commit(store, "trace-selection[a]", chosen, inputs={"traces": traces})
    imported = commit(store, "trace-import[b]", chosen)
    lost = scores.model_copy(update={"ref": Ref(kind="scores", key="0" * 16)})
    plain, ranked = {"rank": None, "seed": 0}, {"rank": 1, "order": "reward", "seed": 0}
    fits = {"fits": True, "order": "length", "seed": 0}
    said = {
        "selected": (plain, {"traces": selected}, {"traces": 6.0}, "6 explanations</a>"),
        "unscored": (plain, {"traces": imported}, {}, "(nothing scored them)"),
        "cut": (plain, {"traces": traces}, {"dropped_too_long": 4.0}, "4 of them too long"),
        "fits": (fits, {"traces": traces, "scores": scores}, {}, "the best that fits"),
        "lost": (ranked, {"traces": traces, "scores": lost}, {}, "min-rank=1"),
        "others": (plain, {}, {}, "other texts"),
    }  # fmt: skip
    students = {
        name: commit(store, f"student-sft[{name}]", {}, seed=0, config=config, metrics=metrics,
                     inputs={"model": base, **inputs})
        for name, (config, inputs, metrics, _) in said.items()
    }  # fmt: skip
    for name, student in students.items():
        answers = {"eval_samples": [eval_row(1, True, model=student.ref.key)]}
        commit(store, f"evaluation[{name}]", answers, seed=0, inputs={"model": student})
    mine = opened(Library(store))
    for name, student in students.items():
        page = mine.get(f"/student/{student.ref.key}").text
        assert said[name][-1] in page, name
        for link in links(page, "/traces"):
            listed = mine.get(link).text
            assert len(links(listed, "/trace/")) == int(
                re.findall(r"(\d+) explanations,", listed)[0]
            )
            assert "No explanation is like that" not in listed, name
    ranks = {row["rank"]: row["trace_id"] for row in read_rows(store.intact(scores), "scores")}
    for rank in (1, 2):
        trace = mine.get(f"/trace/{scores.ref.key}/{ranks[rank]}").text
        shown = {name for name in said if f"student-sft[{name}]" in trace}
        assert shown == {"selected", "cut", "fits", *(["lost"] if rank == 1 else [])}


def test_the_first_question_shows_two_explanations_that_can_be_compared(tmp_path):
    """A single token has the worst reward, an endless text the best; neither says anything."""
    store = Store(str(tmp_path))
    given = {
        1: [(-9.0, 1, True), (-1.0, 40, True), (-2.0, 44, True), (-0.5, 400, False)],
        2: [(-6.0, 41, True), (-1.5, 40, True), (-3.0, 42, True)],
        3: [(-20.0, 1, True), (-1.0, 50, True)],
    }
    rows = [
        score_row(question, reward, sample, think_tokens=tokens, closed=closed, clipped=False)
        for question, each in given.items()
        for sample, (reward, tokens, closed) in enumerate(each)
    ]
    one = commit(store, "trace-scoring[x]", {"scores": rows})
    library = Library(store)
    mine = opened(library)

    def shown(sort):
        found = library.questions({}, sort)["rows"]
        return [(row["question_id"], row["best"], row["worst"]) for row in found]

    assert shown("typical") == [("q002", -1.5, -6.0), ("q001", -1.0, -2.0), ("q003", -1.0, -20.0)]
    assert [row[0] for row in shown("spread")] == ["q003", "q001", "q002"]
    page = mine.get("/").text
    assert "best and worst of typical length first. Typical length: 80% to 125%" in page
    for path in ("/question/q001", links(page, "/question/q001")[0]):
        assert "Rank 2 (unknown) beats rank 3 (unknown) by 1" in mine.get(path).text
    [extremes] = links(mine.get("/?sort=spread").text, "/question/q001")
    question = mine.get(extremes).text
    assert "Rank 1 (unknown) beats rank 4 (unknown) by 8.5" in question
    assert f"a={one.ref.key}.q001-1&amp;b={one.ref.key}.q001-2#sides" in question
    assert library.first_questions(2) == ["q002", "q001"]


def test_new_artifacts_appear_and_removed_ones_go(tmp_path):
    store = Store(str(tmp_path))
    made = sample_run(store, seeds=(0,), ranks=0)
    library = Library(store)
    before = library.traces({}, "highest")["total"]
    scored_training_traces(store, made)
    library._read_at = -queries.FRESH_S
    library.refresh()
    assert library.traces({}, "highest")["total"] == before + 24
    store.remove(made["trace-scoring[sft-held-out]@0"].ref)
    library._read_at = -queries.FRESH_S
    library.refresh()
    assert library.traces({}, "highest")["total"] == before + 24 - 8


def test_on_a_disk_and_on_s3(store_root):
    store = Store(store_root)
    manifest, stored = scored(store)
    library = Library(store)
    found = library.find("scores", manifest.ref.key, TRACE)
    assert found["student_think_logprobs"] == stored["student_think_logprobs"]
    rows = library.of_question("q001", None, None)
    assert [row["trace_id"] for row in rows][-1] == "q001-4"
    comparison = compared(library, rows, {}, f"{manifest.ref.key}.{TRACE}", None)
    assert comparison["sides"][0].found.explanation == explain(store, TRACE).explanation


def test_a_damaged_artifact_is_named_and_hides_no_other(tmp_path, caplog):
    store = Store(str(tmp_path))
    made = sample_run(store, seeds=(0,), ranks=0)
    bad = made["trace-scoring[rlt-held-out]@0"]
    (store.intact(bad) / "scores.parquet").write_bytes(b"PAR1 no more")
    library = Library(store)
    assert library.traces({}, "highest")["total"] == 8
    assert bad.ref.key in caplog.text
    traces = made["trace-generation[sft-held-out]@0"]
    for file in (store.intact(traces) / "traces").iterdir():
        file.write_bytes(b"PAR1 no more")
    mine = opened(library)
    for path in ("/question/q001", "/traces?q=explains"):
        answer = mine.get(path)
        assert answer.status_code == 404 and "when committed" in answer.text, path


def test_an_imported_reward_has_no_tokens_but_a_page(tmp_path):
    store, odd = Store(str(tmp_path)), "A/b?c=/&d\"<i>~'é"
    commit(store, "trace-scoring[imported]", {"scores": [
        score_row(1, reward, sample, student=None, teacher=None, rank=sample + 1)
        for sample, reward in enumerate((2.0, 1.0))
    ] + [
        score_row(1, 3.0, question_id=odd, trace_id=f"{odd}-0", student=None, teacher=odd)
    ]})  # fmt: skip
    mine = opened(Library(store))
    page = mine.get("/question/q001").text
    assert "beats rank 2 (unknown) by 1; the parts of the rewards are not known" in page
    for path in ("/", "/traces"):
        assert odd in html.unescape(mine.get(path).text)
        for link in links(mine.get(f"{path}?q=a/B").text, "/(?:question|trace)/"):
            answer = mine.get(link)
            assert answer.status_code == 200 and odd in html.unescape(answer.text), link


def test_completions_over_the_steps_of_grpo(client):
    page = client.get("/training").text
    options = html.unescape(page)
    assert "<b>question</b> 5, 3 steps" in options and "<b>question</b> 6, 2 steps" in options
    assert "Step 20 of 20" in page and page.count('class="side"') == 2
    first = client.get("/training?at=0&channel=reward").text
    assert "Step 1 of 20" in first and first.count('class="side"') == 4
    assert first.count("sets the maximum") == 4 and "<b>question</b> 6" in html.unescape(first)
    chosen = client.get("/training?question=q006&at=99&run=none").text
    assert "Step 10 of 10" in chosen and chosen.count('class="side"') == 2


# ---------------------------------------------------------------- one file
def test_an_exported_file_needs_nothing_else(library, tmp_path):
    file = tmp_path / "appendix.html"
    export(library, [QUESTION, "q001"], file)
    page = file.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "@import" not in page
    assert not re.search(r"<[^>]* (style|on\w+)=", page.partition("<body>")[2])
    policy = html.unescape(page)
    assert "script-src 'sha256-" in policy and "style-src 'sha256-" in policy
    assert page.count("<article>") == 2 and "beats rank" in page
    traces = [len(library.of_question(name, None, None)) for name in (QUESTION, "q001")]
    assert page.count('class="side"') == sum(traces) + 2, "and the data set's own"
    assert page.count("data set ```trace```") == 4
    with pytest.raises(UserError, match="nearest: q005"):
        export(library, ["q05"], file)


def test_a_circle_of_inputs_ends(library, monkeypatch):
    one = next(m for m in library.manifests.values() if m.stage == "evaluation")
    for stage, name in (("teacher-grpo", "model"), ("trace-selection", "traces")):
        circle = one.model_copy(update={"stage": stage, "inputs": {name: one.ref}})
        student = one.model_copy(update={"stage": "student-sft", "inputs": {"traces": one.ref}})
        found = {"student": student if name == "traces" else circle, one.ref.key: circle}
        monkeypatch.setattr(library, "manifests", found)
        assert library.learned("student") is None
