"""`dualsd view`: serve the workbench until Ctrl-C."""

import os
import secrets
import socket
import sys
import webbrowser
from contextlib import suppress

from cli.options import examples, taking
from cli.output import say
from cli.progress import TerminalProgress
from featstore.config import ViewConfig
from matcher.errors import InputError

EXAMPLES = examples(
    "dualsd view",
    "dualsd view --store spair.zarr --runs runs,grid",
    "dualsd view --no-open --port 8000          (over `ssh -L 8000:127.0.0.1:8000 HOST`)",
)

MISSING = "The workbench needs two small packages more: pip install 'dualsd[view]'."


def view(config: ViewConfig) -> None:
    """Open the workbench in the browser: click a point of one image, see where it goes in another, and watch it move
    as timesteps, weights, readout and prompt change.

    It matches from the store's cached maps, without a network; `dualsd cache maps` makes more of them. It listens on
    this machine alone, and answers only who has the token of its address. Ctrl-C ends it.
    """
    try:
        import uvicorn

        from cli.view.guard import is_every, is_loopback, spell_host
        from cli.view.server import Workers, application
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise InputError(MISSING) from error
    with TerminalProgress() as progress:
        progress.wait("opening the store")
        from cli.view.session import Session

        session = Session(config)
    listening = _listen(config)
    port, token, workers = listening.getsockname()[1], secrets.token_urlsafe(24), Workers()
    if not is_loopback(config.host):
        TerminalProgress().note(
            f"--host {config.host} lets everybody on the network in who knows the token; the pages are not encrypted. "
            "Leave --host out, and reach this machine by `ssh -L`, where that matters."
        )
    shown = "127.0.0.1" if is_every(config.host) else config.host
    address = f"http://{spell_host(shown)}:{port}/?token={token}"
    say(f"the workbench: {address}", "Ctrl-C ends it.")
    sys.stdout.flush()
    if config.open:
        webbrowser.open(address)
    server = uvicorn.Server(
        uvicorn.Config(
            application(session, workers, token, config.host, port),
            log_level="critical",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )
    with suppress(KeyboardInterrupt):  # uvicorn hands it on once it has stopped
        server.run(sockets=[listening])
    workers.stop()
    say("stopped.")
    if workers.busy:  # a thread amid networks cannot be stopped, and Python would wait for it
        sys.stdout.flush()
        os._exit(0)


def _listen(config: ViewConfig) -> socket.socket:
    """A socket that listens. Raises `InputError` where there is no such address, or its port is taken."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"The workbench cannot listen on {config.host}, port {config.port} ({error.args[-1]}): choose another "
            "--port, or leave --host out."
        ) from error


command = taking(ViewConfig)(view)
