"""Published scaling figures beside what the planner's formulas say of them. Nothing was fitted on them.

What is taken from the source is the time on few devices; what is foreseen is what becomes of it on more, or with another ZeRO
stage. Links and latencies are those of the device table.
"""

from __future__ import annotations

from launch.devices import LATENCY, LINK_SHARE, Device, read_device
from launch.estimate import OVERLAPPED
from launch.network import Exchange, Fabric, Link, exchanges, seconds

__all__ = ["rows"]


def _fabric(device: Device) -> Fabric:
    return Fabric(
        per_node=8,
        inside=Link(latency=LATENCY["link"], bandwidth=LINK_SHARE * device.link_bandwidth),
        between=Link(latency=LATENCY["network"], bandwidth=LINK_SHARE * device.network_gbit * 1e9 / 8),
        tree=True,
    )


def _exposed(found: tuple[Exchange, ...], ranks: int, fabric: Fabric) -> float:
    return sum(seconds(item, ranks, fabric) or 0.0 for item in found)


def _vit(name: str, rate: float) -> float:
    """ViT g/14 in NeMo: 1.011e9 parameters, global batch 4,096, bf16 weights, distributed optimizer; none of its communication
    hidden. Efficiency of 16 nodes over one, whose rate in samples a second is published."""
    fabric, found = _fabric(read_device(name)), exchanges(1, "bf16", 1_011_000_000, paper=True)
    one = 4096 / rate
    compute = one - _exposed(found, 8, fabric)
    return one / (16 * (compute / 16 + _exposed(found, 128, fabric)))


def _llama() -> float:
    """Llama 3.1 8B with FSDP in torchtitan: 2 x 8,192 tokens a GPU at 5,762 a second on 8 H100; weights gathered in bf16 twice,
    gradients reduced in fp32. What the backward pass does not hide is exposed. Rate of a GPU among 128, over that among 8."""
    fabric, parameters, step = _fabric(read_device("h100")), 8_030_000_000, 2 * 8192 / 5762
    found = (
        Exchange(kind="all_gather", bytes=4 * parameters, pieces=64),
        Exchange(kind="reduce_scatter", bytes=4 * parameters, pieces=32),
    )
    few, many = (_exposed(found, ranks, fabric) for ranks in (8, 128))
    compute = step - max(0.0, few - OVERLAPPED * step)
    return step / (compute + max(0.0, many - OVERLAPPED * compute))


def _opentau() -> float:
    """pi05 of about 3.6e9 parameters in bf16 on 8 A100 (OpenTau issue 177): one GPU takes 13 samples in 1.248 s. ZeRO 2 at 14
    samples a GPU, nothing hidden, over DDP at 11, all of it hidden."""
    fabric, sample = _fabric(read_device("a100")), 1.248 / 13
    zero = 14 / (14 * sample + _exposed(exchanges(2, "bf16", 3_600_000_000), 8, fabric))
    return zero * sample


def rows() -> list[tuple[str, ...]]:
    """Head and rows of the table."""
    figures = (
        ("ViT g/14, 16 nodes of 8 A100 over one: efficiency", _vit("a100", 693), 10644 / 693 / 16, "NeMo, ViT performance page"),
        ("ViT g/14, 16 nodes of 8 H100 over one: efficiency", _vit("h100", 1428), 21561 / 1428 / 16, "the same"),
        ("Llama 3.1 8B, FSDP, 8 to 128 H100: rate of a GPU", _llama(), 5605 / 5762, "torchtitan, H100 table of 2024-12"),
        ("pi05, 8 A100: ZeRO 2 over DDP", _opentau(), 28.7 / 75.8, "OpenTau, issue 177"),
    )
    head = ("published figure", "foreseen", "published", "error", "source")
    return [
        head,
        *((text, f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs - 1:+.1%}", source) for text, ours, theirs, source in figures),
    ]
