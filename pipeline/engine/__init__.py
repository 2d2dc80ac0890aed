"""Process group, DeepSpeed backend, loop, checkpoints, guard, telemetry."""
