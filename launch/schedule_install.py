"""What lets a machine tick by itself: texts for cron, systemd, Slurm's scrontab and Kubernetes. Nothing is installed."""

from __future__ import annotations

import re
import string

from pipeline.decode import closest
from pipeline.errors import ConfigError
from pipeline.layers import CONFIGS
from pipeline.records import record

__all__ = ["KINDS", "Filling", "install_text"]

KINDS = ("cron", "systemd", "slurm", "kubernetes")
SAFE = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
"""What needs no quotes in any of the four, and means nothing to any of them."""


@record
class Filling:
    """What is filled in. Paths are absolute; `minutes` between two ticks, 1 to 59."""

    ledger: str
    pseudonym_key: str
    policy: str
    folder: str
    program: str
    log: str
    image: str = "unlearn:latest"
    minutes: int = 5


def install_text(kind: str, filling: Filling) -> str:
    """A text of one of `KINDS`.

    A password in the ledger's address is left out: PostgreSQL's client finds it in `~/.pgpass`.

    Raises:
        ConfigError: an unknown kind, a value that would need quotes, or minutes out of range.
    """
    if kind not in KINDS:
        raise ConfigError(f"--print {kind}: no such kind", closest(kind, list(KINDS)))
    if not 1 <= filling.minutes <= 59:
        raise ConfigError(f"--minutes {filling.minutes}: not 1 to 59", "leave it out for 5")
    values = {name: str(getattr(filling, name)) for name in filling.__dataclass_fields__}
    values["ledger"] = _without_password(filling.ledger)
    for name, value in values.items():
        if not SAFE.fullmatch(value):
            raise ConfigError(f"{name}: characters that would need quotes", "use letters, digits and _@+=:,./-, and no spaces")
    template = string.Template((CONFIGS / "schedule" / "install" / f"{kind}.txt").read_text(encoding="utf-8"))
    return template.substitute(values)


def _without_password(url: str) -> str:
    import sqlalchemy as sa

    try:
        found = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise ConfigError("--ledger: not an address of a database", "write sqlite:///FILE or postgresql://HOST/NAME") from None
    bare = sa.URL.create(
        found.drivername,
        username=found.username,
        host=found.host,
        port=found.port,
        database=found.database,
        query=found.query,
    )
    return bare.render_as_string()
