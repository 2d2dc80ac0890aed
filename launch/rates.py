"""The rates of a rank, from the device table or from a probe of this machine."""

from __future__ import annotations

from launch.cluster import ClusterConfig
from launch.devices import LATENCY, LINK_SHARE, Device
from launch.estimate import SMALL, Rates
from launch.memory import Layout, Reading, Slack, memory_of
from launch.network import Exchange, Fabric, Link, exchanges, fit_line, fit_link, seconds
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.orders import Machine, MeasureAnswer

__all__ = ["measured_rates", "measured_slack", "table_rates"]

UPDATE_BYTES = 100.0
"""Bytes of memory traffic a parameter of this engine's step: gradients flattened (8), scaled (8), AdamW in separate passes (78:
weight decay 8, two moments 32, root, quotient and sum 24, the step 14), weights cast (6)."""
DECODES = 735.0
"""Images a second and core: simplejpeg on a Xeon Platinum 8581C, validation images of ImageNet (ternaus/imread_benchmark)."""


def table_rates(device: Device, cluster: ClusterConfig, config: RunConfig, answer: MeasureAnswer, per_node: int) -> Rates:
    """Rates of a GPU of the table in this cluster.

    Raises:
        ConfigError: the device cannot compute in the run's precision.
    """
    precision = config.engine.precision
    rate = device.flop_rate(precision)
    if rate is None:
        message = f"engine.precision: {precision} on {cluster.node.device}, which has no bf16 arithmetic"
        raise ConfigError(message, "set engine.precision=fp32, or name another device")
    gbit, cores = cluster.node.network_gbit or device.network_gbit, cluster.node.cpus / per_node
    return Rates(
        gpu=True,
        flop_seconds=1 / rate,
        fixed_seconds=0.0,
        call_seconds=0.0,
        update_seconds=UPDATE_BYTES / device.memory_bandwidth,
        decode_seconds=1 / (DECODES * cores) if cores else None,
        start_seconds=answer.start_seconds,
        checkpoint_seconds=None,
        fabric=Fabric(
            per_node=per_node,
            inside=Link(latency=LATENCY["link"], bandwidth=LINK_SHARE * device.link_bandwidth),
            between=Link(latency=LATENCY["network"], bandwidth=LINK_SHARE * gbit * 1e9 / 8),
            tree=True,
        ),
    )


def measured_rates(machine: Machine, cluster: ClusterConfig, config: RunConfig, answer: MeasureAnswer) -> Rates:
    """Rates of this machine's ranks, taken apart into what grows with samples, with parameters, and with what is exchanged.

    A probe's step is a + b * samples; a holds the exchanges of the backward pass, which are subtracted by the fitted link.
    """
    facts, engine, ranks = answer.phases[0], config.engine, machine.ranks
    inside = fit_link(machine.network, ranks)
    gbit = cluster.node.network_gbit
    between = (
        Link(latency=inside.latency if inside else LATENCY["network"], bandwidth=LINK_SHARE * gbit * 1e9 / 8) if gbit else None
    )
    fabric = Fabric(per_node=ranks, inside=inside, between=between)
    fixed, each = _line(machine)
    found = exchanges(engine.zero_stage, engine.precision, facts.trained, gpu=cluster.node.gpus > 0)
    in_backward = [item for item in found if item.in_backward]
    in_update = [item for item in found if not item.in_backward]
    small = Exchange(kind="all_reduce", bytes=SMALL)
    fixed -= _spent([*in_backward, *([small] * (facts.sums + 1))], ranks, fabric)
    # What the fit leaves below nothing belongs to the samples' share of a step.
    sizes = [int(samples) for samples in machine.step_seconds]
    if fixed < 0:
        each, fixed = each + fixed / max(sizes), 0.0
    own = facts.trained / ranks if engine.zero_stage else facts.trained
    update = max(0.0, machine.update_seconds - _spent([*in_update, small], ranks, fabric))
    return Rates(
        gpu=cluster.node.gpus > 0,
        flop_seconds=each / facts.flop.each,
        fixed_seconds=fixed,
        call_seconds=machine.call_seconds,
        update_seconds=update / own,
        decode_seconds=None if machine.decode_seconds is None else machine.decode_seconds / machine.decode_threads,
        start_seconds=machine.start_seconds + max(0.0, machine.first_step_seconds - fixed - each * min(sizes) - update),
        checkpoint_seconds=machine.checkpoint_seconds / machine.checkpoint_bytes,
        fabric=fabric,
    )


def _spent(found: list[Exchange], ranks: int, fabric: Fabric) -> float:
    return sum(seconds(item, ranks, fabric) or 0.0 for item in found)


def _line(machine: Machine) -> tuple[float, float]:
    """Seconds of a step that are fixed, and those of a sample."""
    return fit_line([(int(samples), time) for samples, time in machine.step_seconds.items()])


def measured_slack(machine: Machine, config: RunConfig, answer: MeasureAnswer) -> Slack:
    """What the probe's peaks say beside the sum of the parts: the slope over samples, what is left at the largest size, and what
    measuring losses took beside what was traced."""
    facts, engine = answer.phases[0], config.engine
    layout = Layout(zero=engine.zero_stage, precision=engine.precision, ranks=machine.ranks)
    peaks = [(int(samples), float(peak)) for samples, peak in machine.peak_bytes.items()]
    factor = max(1.0, fit_line(peaks)[1] / facts.activations.each)
    forward = max(1.0, machine.look_bytes / answer.forward_bytes.at(machine.look))
    largest, peak = max(peaks)
    found = memory_of(
        facts,
        layout,
        samples=largest,
        reading=Reading(cache=0.0, ahead=0.0),
        process=machine.process_bytes,
        gpu=False,
        slack=Slack(factor=factor),
        publishing=False,
    )
    return Slack(factor=factor, forward=forward, extra=max(0.0, peak - found.total))
