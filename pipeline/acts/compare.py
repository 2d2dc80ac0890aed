"""Draw up the comparison of several methods from the runs of all seeds: figures, page and picture grids."""

from __future__ import annotations

import posixpath

from pipeline.chain import chain_of_method, read_receipt, stage
from pipeline.config import read_run
from pipeline.decode import canonical
from pipeline.errors import StorageError
from pipeline.orders import CompareAnswer, ComparedRun, CompareOrder
from pipeline.records import Evaluations, PhaseOutcome
from pipeline.report import comparison, comparison_page
from pipeline.stages.runner import Job, read_manifest, read_record, read_verified
from pipeline.storage import absolute, join, publish_bytes

__all__ = ["run"]


def run(order: CompareOrder) -> CompareAnswer:
    """Read the finished runs and publish `grids/`, `compare.html` and, last, `compare.json`.

    Raises:
        StorageError: a run has not ended.
        IntegrityError: a file is not what its receipt says.
    """
    folder, seeds, grids = absolute(order.folder), [], {}
    for compared in order.runs:
        if not compared.folder:
            seeds.append(comparison.Seed(seed=compared.seed, failed=compared.failed))
            continue
        seed, pictures = _read(compared)
        seeds.append(seed)
        grids[compared.seed] = pictures
    facts = comparison.build(order.name, order.methods, seeds, order.budget)
    facts["made_from"] = order.made_from
    files = {f"grids/s{seed}_{name}": content for seed, found in grids.items() for name, content in found.items()}
    files["compare.html"] = comparison_page.render(facts, grids).encode()
    files["compare.json"] = canonical(facts)
    for name, content in files.items():
        publish_bytes(join(folder, name), content)
    return CompareAnswer(folder=folder, files=tuple(files))


def _read(compared: ComparedRun) -> tuple[comparison.Seed, dict[str, bytes]]:
    """What one run measured and cost, and its pictures by file name; each file is the one that its receipt names."""
    folder = absolute(compared.folder)
    config = read_run(folder)
    job = Job(spec=stage("evaluate", config), config=config, folder=folder)
    receipts = {name: receipt for name in (*job.spec.needs, "evaluate") if (receipt := read_receipt(folder, name)) is not None}
    if "evaluate" not in receipts:
        raise StorageError(f"{folder}: the run has not ended", "run the comparison again")
    published = {ref.uri: ref for receipt in receipts.values() for ref in receipt.outputs}

    def outcome(uri: str) -> list[PhaseOutcome]:
        return [read_record(job, PhaseOutcome, uri)] if uri in published else []

    seed = comparison.Seed(
        seed=compared.seed,
        failed=compared.failed,
        confidence=config.evaluation.confidence,
        manifest=read_manifest(job),
        evaluations=read_record(job, Evaluations, "evaluation.json"),
        phases={
            name: [
                item for spec in chain_of_method(config, name) for item in outcome(f"methods/{name}/phases/{spec.module}.json")
            ]
            for name in config.methods
        },
        retraining=next(iter(outcome("phases/retrain.json")), None),
        receipts=receipts,
    )
    grids = [uri for uri in published if uri.startswith("evaluation/grid_")]
    return seed, {posixpath.basename(uri): read_verified(job, published[uri]) for uri in sorted(grids)}
