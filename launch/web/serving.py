"""The server itself: one process, no log of who asked for what."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from pipeline.ledger.store import Ledger

__all__ = ["own_names", "run_server"]


def own_names(host: str, more: Sequence[str]) -> frozenset[str]:
    """Host names that the page answers to: this machine's for itself, the one that is bound, and those that were given.

    Args:
        host: name or address that is bound.
        more: names by which a proxy or the network knows the page.
    """
    wild = host in ("0.0.0.0", "::", "")  # noqa: S104
    own = [socket.gethostname(), socket.getfqdn()] if wild else [host]
    return frozenset(name.lower().rstrip(".") for name in ("localhost", *own, *more))


def run_server(
    ledger: Ledger, *, host: str, port: int, names: frozenset[str], runs_at: str, releases_at: str, token: str, outbox: str,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve until interrupted.

    Args:
        ledger: open.
        host, port: to bind; port 0: any free one.
        names: as `own_names` has them.
        runs_at, releases_at, token, outbox: as `create_app` has them.
        say: is told the address.

    Raises:
        ConfigError: the server's packages are not installed.
        StorageError: the address cannot be bound.
    """
    try:
        import uvicorn

        from launch.web.app import create_app

        app = create_app(ledger, runs_at=runs_at, releases_at=releases_at, token=token, names=names, outbox=outbox)
    except ImportError:
        raise ConfigError("the server's packages are not installed", "pip install 'i2i-unlearn[serve]'") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()  # whoever is told the address may come at once
        except OSError as fault:
            raise StorageError(
                f"--host {host} --port {port}: {fault.strerror}", "choose another port, or an address of this machine"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/ shows {ledger.name}; Ctrl-C ends it")
        # An access log would hold what people searched for.
        settings: Any = {"access_log": False, "log_level": "warning", "server_header": False, "proxy_headers": False}
        config = uvicorn.Config(app, lifespan="off", timeout_keep_alive=5, limit_concurrency=64, **settings)
        uvicorn.Server(config).run(sockets=[listener])
