"""Fine-tuning: the plain loss of retained images, and no forget image is read."""

from __future__ import annotations

from pipeline.methods.base import RetainConfig
from pipeline.methods.finetune import Config, build
from tests.pipeline.methods.tiny import WEIGHTS, Tiny, batch, by_loss, close, context, gradient_alone, obeys_padding_and_ranks


def loss(around):
    return build(Config(), (), around).retention().loss


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    assert close(gradient_alone(loss, batch([102, 204])), (by_loss(102) + by_loss(204)) / 2)


def test_padding_weighs_nothing_and_two_ranks_are_one() -> None:
    obeys_padding_and_ranks(loss, pairs=False)


def test_it_reads_retained_images_alone_and_moves_all_weights() -> None:
    config = Config(retain=RetainConfig(share=0.5, batch_size=7, learning_rate=0.1, warmup_steps=2, clip=3.0))
    plan = build(config, (), context(Tiny(*WEIGHTS))).retention()
    assert (plan.reads, plan.batch_sizes, plan.trains, plan.passes, plan.start) == (("retain",), (7,), None, None, "before")
    assert (plan.share, plan.learning_rate, plan.warmup_steps, plan.clip) == (0.5, 0.1, 2, 3.0)
