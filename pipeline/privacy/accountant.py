"""The figure of record: epsilon by dp-accounting, with our own formula beside it as a check of both.

dp-accounting comes with the extra `certify`; without it no certificate is computed.
"""

from __future__ import annotations

import importlib.metadata
import math
from typing import Any

from pipeline.errors import ConfigError
from pipeline.privacy.gaussian import epsilon_of
from pipeline.records import record

__all__ = ["AGREEMENT", "Account", "account", "library"]

AGREEMENT = 1e-3
"""Largest relative difference between the library and our formula; beyond it one of them is wrong, and neither is printed."""
ORDERS = tuple(1 + 10 ** (number / 40) for number in range(-200, 201))
"""Renyi orders, 1 + 1e-5 to 1 + 1e5: the library's own lie too far apart for `AGREEMENT`. It leaves out those below 1.01, so that
figures hold up to an epsilon of some thousands."""


@record
class Account:
    """What a mechanism costs: `epsilon` at `delta` is the figure of record, `formula` our own, `made_by` the accountant's name
    and version."""

    epsilon: float
    delta: float
    formula: float
    made_by: str


def library() -> Any:
    """The module dp_accounting.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import dp_accounting
    except ImportError:
        message = "method.certify: dp-accounting is not installed, and a certificate needs it"
        raise ConfigError(message, "pip install 'i2i-unlearn[certify]', or leave method.certify out") from None
    return dp_accounting


def account(mu: float, delta: float) -> Account:
    """Epsilon of a mechanism that is (mu^2 / 2)-zCDP, as the one of `pipeline.privacy.gaussian` is.

    Args:
        mu: > 0 and finite.
        delta: in (0, 1).

    Raises:
        ValueError: library and formula differ.
        ConfigError: the library is missing.
    """
    accounting = library()
    accountant = accounting.rdp.RdpAccountant(list(ORDERS))
    accountant.compose(accounting.ZCDpEvent(mu * mu / 2))
    found, ours = float(accountant.get_epsilon(delta)), epsilon_of(mu, delta)
    if not math.isclose(found, ours, rel_tol=AGREEMENT, abs_tol=AGREEMENT):
        raise ValueError(f"dp-accounting says epsilon {found}, the formula {ours}, at mu {mu}, delta {delta}")
    return Account(
        epsilon=found, delta=delta, formula=ours, made_by=f"dp-accounting {importlib.metadata.version('dp-accounting')}"
    )
