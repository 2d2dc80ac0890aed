"""`unlearn trace`: from a person, a key or a request to the models that saw the images, and from a model to the requests in it.

The ledger says which batch, run and models; which images those are, only a run's own index says, and a worker is asked for it.
Answers are counts, names and addresses: no key and no subject is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import PurePath
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.ledger import batches, lineage
from pipeline.ledger.pseudonyms import pseudonym
from pipeline.ledger.store import Ledger, Transaction
from pipeline.records import DeletionRequest, Selector, record
from pipeline.schedule_orders import TraceAnswer, TracedRun, TraceOrder

__all__ = ["ModelTrace", "Touched", "Trace", "trace_key", "trace_model", "trace_request", "trace_subject"]

BEGUN = ("original", "given", "retrained")
"""Kinds of models that forgot nothing."""
Ask = Callable[[TraceOrder], TraceAnswer]


@record
class Touched:
    """A model that has to do with the images.

    `how`: `trained` on them · `forgot` them, or came from one that did · `derived` from one that was trained on them, and never
    made to forget them · `perhaps` trained on them: the index that would say so is gone. `aliases`: those that name it now.
    """

    model_id: str
    kind: str
    line: str
    batch_id: str
    uri: str
    how: Literal["trained", "forgot", "derived", "perhaps"]
    aliases: tuple[str, ...]
    removed_at: str


@record
class Trace:
    """What is known of the images that somebody asks about.

    `requests`: (name, state) · `batches`: (name, state, outcome, run folder) · `runs`: what their indexes say; of a run whose
    index is `gone` it is not computed which images were in it.
    """

    requests: tuple[tuple[str, str], ...]
    batches: tuple[tuple[str, str, str, str], ...]
    runs: tuple[TracedRun, ...]
    models: tuple[Touched, ...]


@record
class ModelTrace:
    """What shaped a model: its ancestry (sha256, kind), itself first; the batches of all of them; their requests (name, state,
    batch, outcome); the shards that it saw itself, by role; and the aliases that name it."""

    model_id: str
    kind: str
    line: str
    folder: str
    verdict: str
    ancestry: tuple[tuple[str, str], ...]
    batches: tuple[str, ...]
    requests: tuple[tuple[str, str, str, str], ...]
    trained: tuple[tuple[str, str], ...]
    forgotten: tuple[tuple[str, str], ...]
    aliases: tuple[str, ...]


def trace_subject(ledger: Ledger, subject: str, ask: Ask) -> Trace:
    """Which models saw a person's images, by what the person's requests mean.

    Args:
        ledger: an open one.
        subject: as it came with the requests; it is only turned into a pseudonym.
        ask: sends an order to a worker.

    Raises:
        ConfigError: the pseudonym key is not the ledger's.
    """
    with ledger.read() as tx:
        names = lineage.requests_of_subject(tx, pseudonym(tx.secret, subject)) if subject.strip() else []
    return _trace_requests(ledger, names, ask)


def trace_request(ledger: Ledger, request_id: str, ask: Ask) -> Trace:
    """Which models saw what a request means. Raises ConfigError for an unknown name."""
    from pipeline.ledger.requests import show

    with ledger.read() as tx:
        show(tx, request_id)
    return _trace_requests(ledger, [request_id], ask)


def trace_key(ledger: Ledger, key: str, ask: Ask) -> Trace:
    """Which models saw an image, and which requests mean it: those that name its key, and those that a run's index adds."""
    asked = DeletionRequest(request_id="asked", selector=Selector(kind="keys", values=(key,)))
    with ledger.read() as tx:
        named = lineage.requests_naming(tx, key)
        folders = [folder for _, folder in lineage.runs(tx)]
        skipped = lineage.skipped_before(tx)
    order = TraceOrder(folders=tuple(dict.fromkeys(folders)), requests=(asked,), skipped=skipped)
    found = ask(order).runs if folders else ()
    meant = {name for run in found for name in run.requests}
    return _put_together(ledger, sorted({*named, *meant}), found)


def _trace_requests(ledger: Ledger, names: Sequence[str], ask: Ask) -> Trace:
    with ledger.read() as tx:
        asked = [request for name in names if (request := _as_asked(tx, name))]
        lines = {row["line"] for row in _rows(tx, names)}
        folders = [folder for line in sorted(lines) for _, folder in lineage.runs(tx, line=line)]
        skipped = lineage.skipped_before(tx)
    order = TraceOrder(folders=tuple(dict.fromkeys(folders)), requests=tuple(asked), skipped=skipped)
    found = ask(order).runs if order.folders and order.requests else ()
    return _put_together(ledger, names, found)


def _rows(tx: Transaction, names: Sequence[str]) -> list[dict[str, Any]]:
    from pipeline.ledger.requests import find

    return [row for name in names if (row := find(tx, name))]


def _as_asked(tx: Transaction, name: str) -> DeletionRequest | None:
    from pipeline.ledger.requests import values_of

    (row,) = _rows(tx, [name])
    values = values_of(tx, name)
    return DeletionRequest(request_id=name, selector=Selector(kind=row["kind"], values=values)) if values else None


def _put_together(ledger: Ledger, names: Sequence[str], found: Sequence[TracedRun]) -> Trace:
    with ledger.read() as tx:
        in_batches = lineage.batches_of_requests(tx, names)
        models = _touched(tx, found, {row["batch_id"] for row in in_batches})
        requests = tuple((row["request_id"], row["state"]) for row in _rows(tx, names))
    runs_of = {(row["batch_id"], row["state"], row["outcome"], row["folder"]) for row in in_batches}
    shown = tuple(run for run in found if run.state == "gone" or any(run.images.values()))
    return Trace(requests=requests, batches=tuple(sorted(runs_of)), runs=shown, models=models)


def _touched(tx: Transaction, found: Sequence[TracedRun], mine: Collection[str]) -> tuple[Touched, ...]:
    """The models that saw the images, each with the strongest that is known of it."""
    how: dict[str, str] = {}
    own = lineage.models_of_batches(tx, mine)
    whole = {run.folder for run in found if run.state == "read"}
    perhaps = _perhaps(tx, found, own)
    how |= dict.fromkeys([*perhaps, *lineage.descendants(tx, perhaps)], "perhaps")
    trained = [
        row["model_id"]
        for run in found
        for row in lineage.models_that_saw(tx, [(shard.uri, shard.sha256) for shard in run.shards], folder=run.folder)
        if row["role"] == "trained"
    ]
    # Weights that a run was given to unlearn were given because they saw the images; of a trained original, its index may say.
    trained += [row["model_id"] for row in own if _kind(row) == "given"]
    trained += [row["model_id"] for row in own if _kind(row) == "original" and row["folder"] not in whole]
    how |= dict.fromkeys(lineage.descendants(tx, trained), "derived") | dict.fromkeys(trained, "trained")
    forgot = [row["model_id"] for row in own if _kind(row) not in BEGUN and row["model_id"] in how]
    # What came from a model that forgot them has forgotten them, too, unless it was trained on them itself.
    later = [model for model in lineage.descendants(tx, forgot) if model not in trained]
    how |= dict.fromkeys([*forgot, *later], "forgot")
    rows = [row for model in how for row in lineage.ancestry(tx, model)[:1]]
    return tuple(
        Touched(
            model_id=row["model_id"],
            kind=_kind(row),
            line=row["line"],
            batch_id=row["batch_id"] or "",
            uri=row["uri"],
            how=how[row["model_id"]],  # type: ignore[arg-type]
            aliases=_aliases(tx, row["model_id"]),
            removed_at=row["removed_at"] or "",
        )
        for row in sorted(rows, key=lambda row: (row["batch_id"] or "", row["made_at"], row["model_id"]))
    )


def _perhaps(tx: Transaction, found: Sequence[TracedRun], own: Sequence[dict[str, Any]]) -> list[str]:
    """Models of other batches' runs whose index is not whole any more: nothing tells which images they were trained on.

    Not those of runs that began when all images of the own batches had tombstones.
    """
    ran, skipped = {row["folder"] for row in own}, lineage.skipped_before(tx)
    digests = {batches.find(tx, row["batch_id"])["requests_digest"] for row in own if row["batch_id"]}
    unknown = [run.folder for run in found if run.state != "read" and run.folder not in ran]
    return [
        row["model_id"]
        for folder in unknown
        if not digests or not digests <= set(skipped.get(folder, ()))
        for row in lineage.model_named(tx, folder)
        if any(item["role"] == "trained" for item in lineage.objects_of(tx, row["model_id"]))
    ]


def _kind(row: dict[str, Any]) -> str:
    return str((row["digests"] or {}).get("kind", "released"))


def _aliases(tx: Transaction, model_id: str) -> tuple[str, ...]:
    return tuple(f"{row['line']}/{row['name']}" for row in lineage.aliases_of(tx, [model_id]) if row["in_force"])


def trace_model(ledger: Ledger, *, checkpoint: str = "", alias: str = "") -> ModelTrace:
    """Which requests shaped a model.

    Args:
        ledger: an open one.
        checkpoint: its sha256 or the first digits of it, its file, or a run's or release's folder; of a run the last model.
        alias: LINE/NAME instead.

    Raises:
        ConfigError: no such model or alias, or several models are meant.
    """
    with ledger.read() as tx:
        row = _named_by_alias(tx, alias) if alias else _named(tx, checkpoint)
        line_up = lineage.ancestry(tx, row["model_id"])
        shaping = sorted(
            {model["batch_id"] for model in line_up if model["batch_id"] and _kind(model) not in ("original", "retrained")}
        )
        objects = lineage.objects_of(tx, row["model_id"])
        requests = lineage.requests_of_batches(tx, shaping)
        return ModelTrace(
            model_id=row["model_id"],
            kind=_kind(row),
            line=row["line"],
            folder=row["folder"],
            verdict=row["verdict"],
            ancestry=tuple((model["model_id"], _kind(model)) for model in line_up),
            batches=tuple(shaping),
            requests=tuple((item["request_id"], item["state"], item["batch_id"], item["outcome"]) for item in requests),
            trained=tuple((item["uri"], item["sha256"]) for item in objects if item["role"] == "trained"),
            forgotten=tuple((item["uri"], item["sha256"]) for item in objects if item["role"] == "forgotten"),
            aliases=_aliases(tx, row["model_id"]),
        )


def _named(tx: Transaction, text: str) -> dict[str, Any]:
    from pipeline.storage import absolute

    found = lineage.model_named(tx, text) or lineage.model_named(tx, absolute(text))
    in_folder = {row["folder"] for row in found} | {row["uri"] for row in found}
    if len(found) > 1 and absolute(text) in in_folder:
        found = [row for row in found if row["verdict"]] or found
    if not found:
        raise ConfigError(
            f"--checkpoint {text}: the ledger has no such model", "name a sha256, a file of weights, or a run folder"
        )
    if len(found) > 1:
        some = ", ".join(row["model_id"][:12] for row in found[:5])
        raise ConfigError(f"--checkpoint {text}: {len(found)} models are meant: {some}", "give more digits")
    return found[0]


def _named_by_alias(tx: Transaction, text: str) -> dict[str, Any]:
    line, _, name = text.rpartition("/")
    # A line that is a file may be called as its file is, without folder and ending.
    lines = [known for known in lineage.alias_lines(tx, name) if line in (known, PurePath(known).stem)]
    if len(lines) != 1:
        several = f"several lines are called so: {', '.join(lines)}" if lines else "the ledger has no such alias"
        raise ConfigError(f"--alias {text}: {several}", "write LINE/NAME, e.g. demo/production")
    known = lineage.alias_history(tx, lines[0], name)
    return lineage.ancestry(tx, known[-1]["model_id"])[0]
