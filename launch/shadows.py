"""`unlearn audit --shadows N`: the run again at N other seeds, up to its models, and the attack that they make possible."""

from __future__ import annotations

from launch.acts import carry_out
from launch.compare import prefixed, run_of_seed
from launch.local import Say, run_chain, stages_to_run
from pipeline.audit_orders import ShadowsOrder
from pipeline.config import RunConfig, run_folder
from pipeline.errors import ConfigError, StorageError
from pipeline.findings import Found
from pipeline.records import RequestBatch

__all__ = ["attack_with_shadows"]

LEAST = 2


def attack_with_shadows(
    config: RunConfig, batch: RequestBatch, count: int, *, samples: int, say: Say, to_stderr: bool = False
) -> Found:
    """Train what is not up to date of the shadow runs, and attack the run with them; what is found lies in its folder.

    A shadow run is the same configuration and batch at the seed of the run plus 1, 2, ..., in a folder of its own beside it. It
    ends before the evaluation: nothing of it is to be released.

    Args:
        config: a resolved run without `methods`; it has ended.
        batch: its requests.
        count: shadow runs, at least 2.
        samples: images of each group to attack at most.
        say: takes one line of progress at a time.
        to_stderr: keep standard output free, for JSON.

    Raises:
        ConfigError: one shadow, or a run whose models were not trained by itself.
        StorageError: the run has not ended.
        UnlearnError: what refused or failed in a shadow run.
    """
    if count < LEAST:
        raise ConfigError(f"--shadows {count}: one shadow run shows no spread", f"write at least --shadows {LEAST}")
    for field, value, wanted in (("original", config.original, "train"), ("reference", config.reference, "retrain")):
        if value != wanted:
            message = f"{field}: {value}: a shadow run would have the very same model"
            raise ConfigError(message, f"attack a run with {field}={wanted}, or leave --shadows out")
    folder = run_folder(config, batch)
    if left := stages_to_run(config, folder):
        raise StorageError(f"{folder}: the run has not ended with these settings ({left[0].name} is to run)", "run it first")
    shadows = []
    for number in range(1, count + 1):
        own, spoken = run_of_seed(config, number, "shadow"), prefixed(say, f"shadow {number} of {count}")
        shadows.append(run_chain(own, batch, say=spoken, to_stderr=to_stderr, before="evaluate").folder)
    order = ShadowsOrder(folder=folder, shadows=tuple(shadows), samples=samples)
    return carry_out("shadows", order, Found, to_stderr=to_stderr)
