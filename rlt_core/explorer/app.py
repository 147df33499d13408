"""The explorer's pages: read-only, rendered on the server, for this user alone.

A page is answered only under a name of this machine (so that no other site reaches it by DNS
rebinding), only to GET, and only to a browser with the cookie that the token in the first address
sets: other users of the machine can connect to the port, but do not know the token.
"""

import secrets
from collections.abc import Awaitable, Callable
from itertools import groupby
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from rlt_core.errors import UserError
from rlt_core.explorer import compare, heatmap, queries
from rlt_core.explorer.look import script, style, templates
from rlt_core.explorer.queries import Library
from rlt_core.reward.replay import changed

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MORE = ("is", "run")
"""Parameters of the folded filters."""
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1">'
    '<path fill="#ec8030" d="M0 0h1v1H0z"/><path fill="#4c97d2" d="M1 0h1v1H1z"/></svg>'
)
ANSWERS = 50
"""Answers of a student on a page."""


# ---------------------------------------------------------------- pages
class Query(dict[str, str]):
    """Parameters of an address; one that is not given is empty."""

    def __missing__(self, name: str) -> str:
        return ""


class Pages:
    """One function per page."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def _page(self, name: str, request: Request, **values: Any) -> HTMLResponse:
        query = request.query_params

        def url(path: str | None = None, **changes: Any) -> str:
            """The page's own address, or `path`, with some of its parameters changed."""
            kept = [] if path else [pair for pair in query.multi_items() if pair[0] not in changes]
            given = [*kept, *((name, value) for name, value in changes.items() if value)]
            return (path or request.url.path) + (f"?{urlencode(given)}" if given else "")

        page = templates().get_template(name)
        return HTMLResponse(
            page.render(
                url=url,
                query=Query(query),
                path=request.url.path,
                library=self.library,
                **values,
            )
        )

    def listing(self, request: Request) -> Response:
        """Questions, or traces, that the filters leave."""
        self.library.refresh()
        query = request.query_params
        filters = dict(query) | {"is": query.getlist("is")}
        of_traces = request.url.path == "/traces"
        sorts = queries.TRACE_SORTS if of_traces else queries.QUESTION_SORTS
        sort = query.get("sort") or next(iter(sorts))
        if sort not in sorts:
            raise UserError(f"sort={sort}: choose from {', '.join(sorts)}")
        find = self.library.traces if of_traces else self.library.questions
        found = find(filters, sort, _whole(query.get("after"), 0))
        return self._page(
            "traces.html" if of_traces else "questions.html", request, found=found, sorts=sorts,
            sort=sort, filters=filters,
            more=any(name in MORE or name[:4] in ("min-", "max-") for name in query),
        )  # fmt: skip

    def question(self, request: Request) -> Response:
        """A question's explanations, ranked, two of them side by side."""
        query, library = request.query_params, self.library
        rows = library.of_question(
            request.path_params["question"], query.get("judge"), query.get("run")
        )
        changes, base = self._changes(request, rows[0]["run"])
        found = compare.compared(library, rows, changes, query.get("a"), query.get("b"))
        return self._page(
            "question.html", request, found=found, base=base, changes=changes,
            channel=_channel(request), others=rows[0]["others"],
        )  # fmt: skip

    def trace(self, request: Request) -> Response:
        """One explanation and the students that learned from it."""
        run, name = request.path_params["run"], request.path_params["trace"]
        library = self.library
        found = library.ask("from listed where run = ? and trace_id = ?", run, name)
        if not found:
            raise UserError(f"no trace {name} in the scores {run} of {library.store}")
        rows = library.of_question(found[0]["question_id"], found[0]["judge"], None)
        ranked = compare.ranked(library, rows, {})
        row = next((r for r in ranked if (r["run"], r["trace_id"]) == (run, name)), None)
        row = row or compare.ranked(library, found, {})[0]  # of an older artifact
        results = self.library.results()
        students = [(one, results.get(one.ref.key, [])) for one in library.students_of(row)]
        return self._page(
            "trace.html", request, side=compare.side(library, row, {}), ranked=ranked,
            students=students, channel=_channel(request),
        )  # fmt: skip

    def students(self, request: Request) -> Response:
        """All evaluated models."""
        found = list(self.library.results().items())
        found.sort(key=lambda pair: -max(
            (row["value"] or 0.0 for row in pair[1] if row["metric"].startswith("avg")), default=0.0
        ))  # fmt: skip
        return self._page("students.html", request, found=found)

    def student(self, request: Request) -> Response:
        """A student's answers, and the traces that it was trained on."""
        key, query, library = request.path_params["key"], request.query_params, self.library
        tested = [one for one in library.manifests.values() if "eval_samples" in one.tables]
        evaluations = [one for one in tested if one.inputs["model"].key == key]
        if not evaluations:
            raise UserError(f"no evaluation of a model {key} in {library.store}")
        where, given = "true", list[str]()
        for name in ("task", "outcome"):
            if query.get(name):
                where, given = f"{where} and {name} = ?", [*given, query[name]]
        skip = _whole(query.get("after"), 0)
        answers = library.rows_of(
            "eval_samples", evaluations,
            f"select * from eval_samples where {where} order by task, question_id, sample "
            f"limit {ANSWERS + 1} offset {skip}", *given,
        )  # fmt: skip
        counts = library.rows_of(
            "eval_samples",
            evaluations,
            "select task, outcome, count(*) as answers from eval_samples group by all order by all",
        )
        return self._page(
            "student.html", request, key=key, answers=answers[:ANSWERS], counts=counts,
            results=self.library.results().get(key, []),
            after=skip + ANSWERS if len(answers) > ANSWERS else None,
        )  # fmt: skip

    def training(self, request: Request) -> Response:
        """Completions over the steps of GRPO: the best and the worst of each question."""
        query, library = request.query_params, self.library
        runs = {one.ref.key: one for one in library.trained()}
        if not runs:
            raise UserError(
                f"{library.store} has no completions of GRPO; keep some with --set "
                "resources.rollouts_every_steps=10"
            )
        one = runs.get(query.get("run", ""), next(iter(runs.values())))
        repeated = library.repeated(one)
        chosen = query["question"] if query.get("question") in repeated else None
        steps = library.steps(one, chosen)
        place = min(_whole(query.get("at"), len(steps)), len(steps) - 1)
        groups = []
        rows = library.completions(one, steps[place]["step"], chosen)
        for name, group in groupby(rows, itemgetter("question_id")):
            best, *others = group
            shown = [best, *(others if chosen else others[-1:])]
            sides = [compare.completion_side(library, one, row) for row in shown]
            groups.append((library.question_text(one, name), sides, 1 + len(others)))
        return self._page(
            "training.html", request, runs=runs, one=one, steps=steps,
            repeated={name: (library.question_text(one, name), n) for name, n in repeated.items()},
            chosen=chosen, place=place, groups=groups, channel=_channel(request),
        )  # fmt: skip

    def _changes(self, request: Request, run: str) -> tuple[compare.Changes, Any]:
        """Return the fields of the reward that the address changes, and the scoring's own spec."""
        base = compare.spec_under(self.library, run, {})
        query = request.query_params
        given = {name: query[name] for name in compare.REPLAYED if query.get(name)}
        if base is None or not given:
            return {}, base
        spec = changed(base, given)
        new = {name: getattr(spec, name) for name in given}
        return {name: value for name, value in new.items() if value != getattr(base, name)}, base


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 10 else default


def _channel(request: Request) -> str:
    name = request.query_params.get("channel")
    return name if name in heatmap.CHANNELS else next(iter(heatmap.CHANNELS))


# ---------------------------------------------------------------- the application
def create_app(library: Library, token: str, port: int) -> Starlette:
    """Return the application; `token` is the first address' parameter, `port` where it listens."""
    pages = Pages(library)
    hosts, cookie = (f"127.0.0.1:{port}", f"localhost:{port}"), f"rlt-traces-{port}"

    async def admit(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = _refusal(request, hosts, cookie, token)
        response = response or await call_next(request)
        response.headers.update(HEADERS)
        return response

    def static(request: Request) -> Response:
        content, kind = {
            "css": (style, "text/css"), "js": (script, "text/javascript"),
            "ico": (lambda: ICON, "image/svg+xml"),
        }[request.url.path.rpartition(".")[2]]  # fmt: skip
        return Response(content(), media_type=kind)

    def failed(request: Request, error: Exception) -> Response:
        status = 404 if isinstance(error, UserError) else getattr(error, "status_code", 500)
        response = pages._page("error.html", request, message=str(error))
        response.status_code = status
        return response

    routes = [
        Route("/", pages.listing), Route("/traces", pages.listing),
        Route("/question/{question:path}", pages.question),
        Route("/trace/{run}/{trace:path}", pages.trace),
        Route("/students", pages.students), Route("/student/{key}", pages.student),
        Route("/training", pages.training),
        *(Route(path, static) for path in ("/explorer.css", "/explorer.js", "/favicon.ico")),
    ]  # fmt: skip
    return Starlette(
        routes=routes,
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=admit)],
        exception_handlers={UserError: failed, 404: failed},
    )


def _refusal(request: Request, hosts: tuple[str, ...], cookie: str, token: str) -> Response | None:
    """Return the answer to a request that may see nothing, or that brings the token; else None."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if host not in hosts or origin not in (None, f"http://{host}"):
        return PlainTextResponse("Open the address that rlt traces printed.", 403)
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("Only GET: these pages change nothing.", 405)
    if secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
        kept = [pair for pair in request.query_params.multi_items() if pair[0] != "token"]
        to = "/" + request.url.path.lstrip("/") + (f"?{urlencode(kept)}" if kept else "")
        response = RedirectResponse(to, 303)
        response.set_cookie(cookie, token, httponly=True, samesite="lax")
        return response
    if not secrets.compare_digest(request.cookies.get(cookie, "").encode(), token.encode()):
        return PlainTextResponse(
            "This page is for the user who started it. Open the address with ?token= that "
            "rlt traces printed.", 403,
        )  # fmt: skip
    return None
