"""Pieces of the one vector: each weight in one piece, at the place that its name and offset give, at any stage and world size."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import EngineConfig
from pipeline.engine.backend import Backend, OptimizerConfig
from pipeline.engine.distributed import group
from pipeline.engine.layout import Piece, pieces_of, runs_of
from pipeline.engine.noisy import NoisySteps
from pipeline.kernels.reference import Reference
from pipeline.models.autoencoder import Config, build
from pipeline.privacy.mechanism import CertifyConfig, mechanism_of
from pipeline.privacy.noise import SecretNoise
from tests.support.distributed import run_distributed

Found = list[tuple[str, int, int, list[float]]]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(Config(image_size=8, width=16, latent=16))


def pieces(stage: int, precision: str, frozen: bool = False) -> Found:
    ranks, rule, moved = group(), mechanism_of(CertifyConfig()), model()
    if frozen:
        next(moved.parameters()).requires_grad_(False)
    made: list[NoisySteps] = []

    def noisy(moving: list[torch.nn.Parameter]) -> NoisySteps:
        made.append(NoisySteps(moving, mechanism=rule, noise=SecretNoise(bytes(32)), sum=ranks.sum, kernels=Reference()))
        return made[0]

    backend = Backend(
        moved,
        engine=EngineConfig(zero_stage=stage, precision=precision),
        optimizer=OptimizerConfig(learning_rate=1.0, steps=1),
        micro_batch=1,
        group=ranks,
        steps=noisy,
    )
    names = [name for name, _ in model().named_parameters()]
    found = [
        (piece.name, piece.start, piece.offset, piece.master.tolist()) for piece in pieces_of(backend.engine, names, made[0])
    ]
    backend.close()
    return found


def grid(precision: str, frozen: bool = False) -> dict[int, Found]:
    return {stage: pieces(stage, precision, frozen) for stage in range(4)}


@pytest.mark.distributed
@pytest.mark.parametrize(("precision", "frozen"), [("fp32", False), ("bf16", True)])
def test_pieces_of_all_ranks_are_the_vector(precision: str, frozen: bool) -> None:
    parameters = list(model().named_parameters())[1 if frozen else 0 :]
    vector = torch.cat([parameter.detach().flatten() for _, parameter in parameters])
    starts, place = {}, 0
    for name, parameter in parameters:
        starts[name], place = place, place + parameter.numel()
    answers = run_distributed(grid, 3, precision, frozen)
    for stage in range(4):
        seen = torch.zeros(len(vector))
        for answer in answers:
            for name, start, offset, values in answer[stage]:
                assert start == starts[name] + offset
                seen[start : start + len(values)] += 1
                wanted = vector[start : start + len(values)]
                if precision == "bf16" and not stage:
                    wanted = wanted.bfloat16().float()  # DeepSpeed hides the masters there, so they stay rounded
                assert torch.equal(torch.tensor(values), wanted), f"stage {stage}: {name}"
        assert (seen == (1 if stage else 3)).all(), f"stage {stage}"


def test_pieces_join_where_they_follow_one_another_in_owner_and_vector() -> None:
    owner, other = torch.arange(10.0), torch.arange(4.0)

    def piece(of: torch.Tensor, position: int, count: int, start: int) -> Piece:
        return Piece("w", of[position : position + count], of, position, start, 0)

    found = runs_of(
        [
            piece(owner, 0, 3, 100),
            piece(owner, 3, 2, 103),
            piece(owner, 6, 2, 105),
            piece(owner, 8, 2, 110),
            piece(other, 0, 4, 112),
        ]
    )
    assert [(run.start, run.master.tolist()) for run in found] == [
        (100, [0, 1, 2, 3, 4]),
        (105, [6, 7]),  # a gap in the owner
        (110, [8, 9]),  # a gap in the vector
        (112, [0, 1, 2, 3]),
    ]
    found[0].master.zero_()
    assert owner[:6].tolist() == [0, 0, 0, 0, 0, 5]
    assert found[1].owner is owner
    assert found[1].part(torch.arange(20, 30).bfloat16()).tolist() == [26, 27]
