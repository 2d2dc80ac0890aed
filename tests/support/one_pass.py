"""A law of every model that gives loss and prediction in one forward pass."""

from __future__ import annotations

from torch import Tensor
from torch.testing import assert_close

from pipeline.models.base import ImageModel


def assert_both_are_those_of_two_passes(model: ImageModel, views: tuple[Tensor, ...]) -> None:
    """Their values, and the gradient of something that both enter."""
    assert model.gives_both

    def pulled(loss: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (loss.sum() + prediction.square().mean()).backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return {**found, "the loss": loss.detach(), "the prediction": prediction.detach()}

    both = pulled(*model(*views, "both"))
    assert len(both) > 2
    assert_close(both, pulled(model(*views), model(*views, "prediction")))
