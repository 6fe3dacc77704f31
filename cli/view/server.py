"""The workbench's server: what may be asked by which address, and what becomes of errors.

    GET  /?token=T                        the page; its files by name under /page/
    GET  /api/state                       all that can be chosen, as it is now
    GET  /api/image/ROW?side=N            a picture, its longer side at most N pixels
    POST /api/match                       {source, target, points, setting, heat, keypoints, alpha}
    GET  /api/keypoints?source=&target=   those that two images show
    GET  /api/run?path=                   category, kind, readout, alpha, start; of a grid cell: pairs that it wins
    POST /api/command                     as match: what could be typed
    POST /api/upload?category=            the body is an image file
    GET  /api/annotations                 keypoints by image
    POST /api/annotations                 {image, name, x, y}

Errors are {"error": a sentence}: 400 for what cannot be asked, 403 for who may not, 404 for what is not there, 409 for
what cannot be answered as things are, 413 for what is too large.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cli.view.guard import Guard, TooLargeError, refusal
from cli.view.session import LARGEST_SIDE, NotThereError, Session
from featstore.errors import AdapterError, DatasetError, EvaluationError, ModelError, PromptError, StoreError
from featstore.pipeline.live_runs import Asked
from matcher.errors import InputError

MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "png": "image/png"}
"""Of the page's files, by the ends of their names; others are not sent."""

STATE_OF_THINGS = (AdapterError, DatasetError, EvaluationError, ModelError, PromptError, StoreError)
"""Errors of what lies on the disk, not of what was asked."""


def page_files() -> dict[str, tuple[bytes, str]]:
    """The page's files by name, each with its media type."""
    files = resources.files("cli.view").joinpath("page")
    if not files.is_dir():
        return {}
    kinds = ((file, MEDIA.get(file.name.rpartition(".")[2])) for file in files.iterdir() if file.is_file())
    return {file.name: (file.read_bytes(), kind) for file, kind in kinds if kind is not None}


class Workers:
    """Threads that work for the server: one that matches, one for pictures, so that neither waits for the other. busy:
    how many work. asked: what the one that matches has been given and is not done with."""

    def __init__(self) -> None:
        self._matching, self._pictures = (ThreadPoolExecutor(1, name) for name in ("matching", "pictures"))
        self.busy = self.asked = 0
        self._warming: set[asyncio.Task[None]] = set()

    async def match(self, work: Callable[[], Any]) -> Any:
        """Run something in the one thread that may use the session."""
        self.asked += 1
        try:
            return await self._run(self._matching, work)
        finally:
            self.asked -= 1

    def warm(self, step: Callable[[], bool]) -> None:
        """Run a step again and again, as long as it says that there is more and nobody waits."""

        async def warming() -> None:
            while not self.asked and await self._run(self._matching, step):
                pass

        if not self._warming:
            task = asyncio.get_running_loop().create_task(warming())
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)

    async def draw(self, work: Callable[[], Any]) -> Any:
        """Run something that reads a picture."""
        return await self._run(self._pictures, work)

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], Any]) -> Any:
        def counted() -> Any:
            self.busy += 1
            try:
                return work()
            finally:
                self.busy -= 1

        return await asyncio.get_running_loop().run_in_executor(pool, counted)

    def stop(self) -> None:
        """Begin nothing more."""
        for pool in (self._matching, self._pictures):
            pool.shutdown(wait=False, cancel_futures=True)


def application(session: Session, workers: Workers, token: str, host: str, port: int) -> Guard:
    """What a server runs: the routes behind the guard."""
    files = page_files()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            return refusal(404, "There is no such file.")
        content, kind = files[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    async def image(request: Request) -> Response:
        side = min(_number(request, "side", LARGEST_SIDE), LARGEST_SIDE)
        draw = partial(session.picture, request.path_params["row"], max(side, 1))
        content, kind = await workers.draw(draw)
        return Response(content, media_type=kind, headers={"cache-control": "private, max-age=600"})

    async def match(request: Request) -> Response:
        answer = JSONResponse(await workers.match(partial(session.match, await _body(request))))
        workers.warm(session.maps.warm)
        return answer

    async def upload(request: Request) -> Response:
        return JSONResponse(
            await workers.match(
                partial(session.upload, await request.body(), request.query_params.get("category", "")[:200])
            )
        )

    async def keypoints(request: Request) -> Response:
        ends = (_number(request, name) for name in ("source", "target"))
        answer = JSONResponse(await workers.match(partial(session.keypoints, *ends)))
        workers.warm(session.maps.warm)
        return answer

    async def run(request: Request) -> Response:
        said = request.query_params
        asked = Asked(
            said.get("category"),
            said.get("kind"),
            _number(request, "start", 0),
            said.get("readout"),
            _fraction(request, "alpha"),
            _number(request, "cell") if "cell" in said else None,
        )
        return JSONResponse(await workers.match(partial(session.run, said.get("path", ""), asked)))

    def asking(method: Callable[[], Any]) -> Callable[[Request], Any]:
        async def answer(_: Request) -> Response:
            return JSONResponse(await workers.match(method))

        return answer

    def telling(method: Callable[[Any], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            return JSONResponse(await workers.match(partial(method, await _body(request))))

        return answer

    routes = [
        Route("/", page),
        Route("/page/{name}", page),
        Route("/api/state", asking(session.state)),
        Route("/api/image/{row}", image),
        Route("/api/match", match, methods=["POST"]),
        Route("/api/keypoints", keypoints),
        Route("/api/run", run),
        Route("/api/command", telling(session.command), methods=["POST"]),
        Route("/api/upload", upload, methods=["POST"]),
        Route("/api/annotations", asking(session.annotations), methods=["GET"]),
        Route("/api/annotations", telling(session.annotate), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {
        InputError: _refuse,
        NotThereError: lambda _, error: refusal(404, str(error)),
        TooLargeError: lambda _, __: refusal(413, "That is too large."),
        HTTPException: lambda _, error: refusal(error.status_code, "There is nothing of that kind here."),
        Exception: _fault,
    }
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, host, port)


async def _body(request: Request) -> Any:
    """A request's JSON. Raises `InputError` where it is none."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InputError("The request is no JSON.") from error


def _number(request: Request, name: str, usual: int | None = None) -> int:
    """A whole number of the address. Raises `InputError` where it is none."""
    text = request.query_params.get(name, "" if usual is None else str(usual))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(f"{name} is a whole number, not {text[:80]!r}.")
    return int(text)


def _fraction(request: Request, name: str) -> float | None:
    """A number of the address, None where there is none. Raises `InputError` for what is none."""
    text = request.query_params.get(name)
    try:
        return None if text is None else float(text)
    except ValueError:
        raise InputError(f"{name} is a number, not {text[:80]!r}.") from None  # type: ignore[index]


def _refuse(_: Request, error: Exception) -> Response:
    """What cannot be asked, and what cannot be answered as things are."""
    return refusal(409 if isinstance(error, STATE_OF_THINGS) else 400, str(error))


def _fault(_: Request, error: Exception) -> Response:
    return refusal(500, f"This is a fault of dualsd's own ({type(error).__name__}).")
