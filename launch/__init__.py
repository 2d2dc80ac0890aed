"""The `unlearn` command: plans a run, starts its stages, checks what came out. Never imports torch."""
