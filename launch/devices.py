"""The device table: what a GPU can do at most by its datasheet, and what share of that training reaches.

One YAML file a device in `configs/device/`, each number with its source. The processor of this machine is in no table: it is
measured (`unlearn plan` without a device).
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le

from pipeline.config import PositiveFloat
from pipeline.decode import closest, decode
from pipeline.errors import ConfigError
from pipeline.layers import packaged, read_yaml
from pipeline.records import record

__all__ = ["LATENCY", "LINK_SHARE", "NODE_GPUS", "Device", "device_names", "read_device"]

LATENCY = {"link": 3.4e-6, "network": 14.0e-6}
"""Seconds a hop of a ring takes beside its bytes: NCCL's own tuning model (src/graph/tuning.cc, hwLat, protocol Simple)."""
LINK_SHARE = 0.8
"""Share of a link's nominal bandwidth that long messages reach. An assumption, the same for all devices."""
NODE_GPUS = 8
"""GPUs of a node of every device in the table."""


@record
class Device:
    """One kind of GPU; rates a second and GPU, bytes a second one way."""

    fp32_flop: PositiveFloat
    """Peak of fp32 arithmetic."""
    bf16_flop: PositiveFloat | None
    """Peak of bf16 tensor cores; null where it has none."""
    memory_bytes: PositiveFloat
    """Of its own."""
    memory_bandwidth: PositiveFloat
    """Between it and its memory."""
    link_bandwidth: PositiveFloat
    """To the other GPUs of its node."""
    network_gbit: PositiveFloat
    """Gigabits a second of a whole node; a cluster's `node.network_gbit` goes before it."""
    reached: Annotated[float, Gt(0), Le(1)]
    """Share of the peak that training reaches."""

    def flop_rate(self, precision: str) -> float | None:
        """FLOP a second that training in this precision of the engine reaches; None where the device cannot."""
        peak = self.fp32_flop if precision == "fp32" else self.bf16_flop
        return None if peak is None else peak * self.reached


def device_names() -> list[str]:
    """Devices in the table."""
    return list(packaged("device"))


def read_device(name: str) -> Device:
    """An entry of the table.

    Raises:
        ConfigError: there is none of this name.
    """
    files = packaged("device")
    if name not in files:
        known = ", ".join(files)
        raise ConfigError(f"node.device: no device is called '{name}'", f"{closest(name, list(files))}; the table has {known}")
    return decode(Device, read_yaml(str(files[name])), where=f"device {name}")
