import pytest
import torch

from pipeline.evaluation.inception import CLASSES, WIDTH, Inception

# Names and shapes in pt_inception-2015-12-05-6726825d.pth, one of each kind of layer.
KNOWN = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6d.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch_pool.bn.bias": (192,),
    "fc.weight": (1008, 2048),
    "fc.bias": (1008,),
}


def random_inception():
    """Weights that keep values of one size through all layers; made ten times faster than by torch's own init."""
    with torch.device("meta"):
        network = Inception()
    generator = torch.Generator().manual_seed(0)
    for name, value in network.to_empty(device="cpu").state_dict().items():
        if value.dim() > 1:
            value.uniform_(-1, 1, generator=generator).mul_((6 / value[0].numel()) ** 0.5)
        else:
            value.fill_(1 if name.endswith(("bn.weight", "running_var")) else 0)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return random_inception()


def test_parameters_are_those_of_the_known_file(network):
    state = network.state_dict()
    assert {name: tuple(state[name].shape) for name in KNOWN} == KNOWN
    assert sum(name.endswith("conv.weight") for name in state) == 94
    # torchvision's count for the usual architecture without its side head, and 8 classes more.
    assert sum(value.numel() for value in network.parameters()) == 23_834_568 + 8 * (WIDTH + 1)


def test_shapes_at_the_size_it_was_trained_at(network):
    shapes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        features, logits = network(torch.zeros(1, 3, 299, 299))
    assert features.shape == (1, WIDTH) and logits.shape == (1, CLASSES)
    assert shapes["Conv2d_2b_3x3"] == (64, 147, 147) and shapes["Conv2d_4a_3x3"] == (192, 71, 71)
    assert shapes["Mixed_5d"] == (288, 35, 35) and shapes["Mixed_6a"] == shapes["Mixed_6e"] == (768, 17, 17)
    assert shapes["Mixed_7a"] == (1280, 8, 8) and shapes["Mixed_7b"] == shapes["Mixed_7c"] == (2048, 8, 8)
