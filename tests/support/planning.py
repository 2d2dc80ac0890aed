"""Facts and rates by hand, for tests of the planner's formulas."""

from __future__ import annotations

from launch.estimate import Rates
from launch.network import Fabric, Link
from pipeline.orders import Linear, Machine, MeasureAnswer, PhaseFacts

FACTS = PhaseFacts(
    phase="train",
    parameters=1_000_000,
    trained=1_000_000,
    largest=1000,
    buffer_bytes=0,
    flop=Linear(fixed=0.0, each=1e9),
    activations=Linear(fixed=0.0, each=1e6),
    companions=0,
    calls=1,
    quiet_calls=0,
    sums=1,
    reads=("original",),
    batch_sizes=(64,),
)
ANSWER = MeasureAnswer(
    image_bytes=1000,
    draws=1,
    forward_flop=3e8,
    forward_bytes=Linear(fixed=0.0, each=1e5),
    complete_flop=6e8,
    complete_bytes=Linear(fixed=0.0, each=2e5),
    process_bytes=400_000_000,
    start_seconds=5.0,
    phases=(FACTS,),
)
RATES = Rates(
    gpu=True,
    flop_seconds=1e-12,
    fixed_seconds=0.0,
    call_seconds=0.0,
    update_seconds=1e-9,
    decode_seconds=1e-6,
    start_seconds=5.0,
    checkpoint_seconds=1e-9,
    fabric=Fabric(per_node=8, inside=Link(latency=1e-6, bandwidth=1e11), between=Link(latency=1e-5, bandwidth=1e10), tree=True),
)
MACHINE = Machine(
    ranks=2,
    threads=1,
    step_seconds={"16": 0.3, "32": 0.5},
    call_seconds=0.02,
    update_seconds=0.05,
    first_step_seconds=0.6,
    start_seconds=5.0,
    network=tuple((4**power, 2e-4 + 4**power / 5e8) for power in range(4, 14)),
    decode_seconds=1e-3,
    decode_threads=1,
    checkpoint_bytes=20_000_000,
    checkpoint_seconds=0.1,
    process_bytes=400_000_000,
    mapped_bytes=150_000_000,
    peak_bytes={"16": 500_000_000, "32": 540_000_000},
    look=100,
    look_bytes=12_000_000,
    load=0.2,
)
