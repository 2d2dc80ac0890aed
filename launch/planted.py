"""`unlearn audit RUN --planted`: make a twin of a finished run with something planted in its data, and have it attacked.

The twin goes through the whole chain, training and retraining included, because what is planted must be there before the
training. It lies beside the run, is resumed like any run, and serves all attacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Iterator

from launch.acts import carry_out
from launch.local import Say, run_chain
from pipeline.audit_orders import PlantedOrder
from pipeline.config import RunConfig, packaged_section, read_run, run_folder
from pipeline.errors import ConfigError, Preempted, StorageError, UnlearnError
from pipeline.findings import Found
from pipeline.records import DeletionRequest, RequestBatch, Selector
from pipeline.requests import PLANTED, batch_digest
from pipeline.storage import create_bytes, exists, join, remove_tree

__all__ = ["audit_planted", "twin_of"]

KEY_FILE = "shards/planting.key"
"""Of 32 random bytes, beside the shards and the requests, which are private as well."""


def twin_of(config: RunConfig, batch: RequestBatch, folder: str, canaries: int) -> tuple[RunConfig, RequestBatch]:
    """The configuration and the requests of the planted twin of the finished run in `folder`.

    Args:
        config: the run as it was asked for now; its output folder and what does not change the result count.
        batch: the run's requests. Those of the twin name no image: one prefix means all that the run forgot and all canaries.
        folder: of the run.
        canaries: how many coins are tossed.

    Raises:
        StorageError: the run has not ended.
        ConfigError: its original was given, not trained, or it is a planted twin itself.
    """
    if not exists(join(folder, "receipts", "release.json")):
        raise StorageError(f"{folder}: the run has not ended", "run it first")
    made = read_run(folder)
    if made.source["component"] == "planted":
        raise ConfigError(f"{folder}: is a planted twin itself", "name the run that it is the twin of")
    if made.original != "train":
        raise ConfigError(
            f"audit --planted: the original model of run {made.name} is a file that was given, and planting needs a training",
            "audit a run with original=train, or leave --planted out",
        )
    request = DeletionRequest(
        request_id=f"{PLANTED}{batch_digest(batch)[:8]}",
        selector=Selector(kind="prefix", values=(PLANTED,)),
        copies="ignore",  # of the run's own images the run has decided; canaries are copies of each other on purpose
    )
    requests = RequestBatch(requests=(request,))
    twin = dataclasses.replace(
        made,
        name=f"{made.name}-planted",
        output=config.output,
        reference="retrain",
        methods={},
        shards=dataclasses.replace(made.shards, near_bits=None),
        reading=config.reading,
        launch=config.launch,
    )
    source = {"component": "planted", "run": folder, "canaries": canaries, "secret": join(run_folder(twin, requests), KEY_FILE)}
    return dataclasses.replace(twin, source=packaged_section("source", source, "audit --planted")), requests


def audit_planted(
    config: RunConfig, batch: RequestBatch, folder: str, *, canaries: int, samples: int, say: Say, to_stderr: bool = False
) -> Found:
    """Make the twin, or what is not up to date of it, and attack it.

    Args:
        config, batch, folder, canaries: see `twin_of`.
        samples: images of each attack at most.
        say: takes one line of progress at a time.
        to_stderr: keep standard output free, for JSON.

    Raises:
        UnlearnError: what refused or failed.
    """
    twin, requests = twin_of(config, batch, folder, canaries)
    place = run_folder(twin, requests)
    with _no_secret_of_refusal(place):
        # Only its owner may read it, and an earlier one stays: what was planted with it can be found with it alone.
        create_bytes(join(place, KEY_FILE), secrets.token_bytes(32))
        run_chain(twin, requests, say=lambda line: say(f"twin: {line}"), to_stderr=to_stderr)
    say("planted: canaries, noise and backdoor in the twin's models")
    return carry_out("planted", PlantedOrder(folder=folder, twin=place, samples=samples), Found, to_stderr=to_stderr)


@contextlib.contextmanager
def _no_secret_of_refusal(folder: str) -> Iterator[None]:
    """Remove the twin's folder when it is refused before its first stage has finished, and was not there before."""
    fresh = not exists(folder)
    try:
        yield
    except Preempted:
        raise
    except UnlearnError:
        if fresh and not exists(join(folder, "receipts", "shard.json")):
            remove_tree(folder)
        raise
