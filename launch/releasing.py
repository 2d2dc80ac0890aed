"""The release that a schedule makes of itself: as `unlearn release` does, with what the policy says."""

from __future__ import annotations

from launch.keys import passphrase
from launch.policy import SchedulePolicy
from launch.release import Outcome, Wish, release
from pipeline.ledger.store import Ledger
from pipeline.signing import read_private

__all__ = ["release_run"]


def release_run(ledger: Ledger, policy: SchedulePolicy, folder: str) -> Outcome:
    """Release a finished run by its schedule's policy; may be repeated.

    Args:
        ledger: in which it is written down, and with whose pseudonym key the forgotten keys are digested.
        policy: says where to, with which key, and which alias moves.
        folder: the run folder.

    Raises:
        GateFailed: the verdict did not pass, or the model may hold deleted data. Nobody is there to let it.
        ConfigError: the key cannot be read, or the release may not be.
        IntegrityError: the run is not what its receipts say.
        StorageError: a store refuses.
    """
    with ledger.read() as tx:
        secret, now = tx.secret, tx.now
    key = read_private(policy.release_key, passphrase=passphrase(policy.passphrase_file))
    wish = Wish(to=policy.release_to, key=key, by=ledger.actor, now=now, alias=policy.alias, secret=secret)
    return release(folder, wish, ledger=ledger)
