"""What the fused update and the fused patch loss gain over plain torch, `_foreach`, `torch.compile` and DeepSpeed's functions.

    python benchmarks/kernels.py [--millions 85 300] [--rounds 15] [--threads 2] [--parts update loss] [--device cuda]

An update is: clip by the length of the whole gradient, step, and, by setting, Gaussian noise, a ball around an anchor that binds,
and a bf16 copy. The vector is 144 tensors for the loop and for `_foreach`, as a ViT-Base has, and one flat tensor for the others.
Every round runs all ways in turning order; a ratio is the median of paired ratios with its 95 % bootstrap interval. Extra bytes
are the peak of torch's allocator during one update, after a first one, over the number of weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from harness import gpu, interval, machine, ratio, rounds, spread, table, timed
from torch import Tensor, nn

from pipeline.config import EngineConfig
from pipeline.engine.backend import quiet_deepspeed
from pipeline.kernels.choose import choose
from pipeline.kernels.counter import Draw
from pipeline.kernels.patch_loss import patch_loss

TENSORS = 144
RATE, CLIP, NOISE, RADIUS = 1e-3, 1.0, 1e-4, 0.5


@dataclasses.dataclass(frozen=True)
class Setting:
    """name · noise, ball (with the bf16 copy): what the update does · needed: bytes a weight that it must read and write"""

    name: str
    noise: bool
    ball: bool
    needed: int


SETTINGS = (
    Setting("clip", False, False, 4 + 8 + 4),
    Setting("clip, noise", True, False, 4 + 8 + 4),
    Setting("clip, noise, ball, bf16 copy", True, True, 4 + 12 + 4 + 8 + 4 + 2),
)


class Vectors:
    """Weights p, gradient g, anchor a, copy q: flat, and in views; another gradient for DeepSpeed, which shortens it in place."""

    def __init__(self, count: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.p = torch.randn(count, generator=generator, device=device)
        self.g = torch.randn(count, generator=generator, device=device)
        self.a = self.p.clone()
        self.q = torch.empty(count, dtype=torch.bfloat16, device=device)
        self.views = [list(flat.tensor_split(TENSORS)) for flat in (self.p, self.g, self.a, self.q)]
        self.moved = nn.Parameter(self.p)
        self.moved.grad = self.g.clone()
        self.descent = torch.optim.SGD([self.moved], lr=RATE)


def plain(v: Vectors, setting: Setting) -> None:
    """A loop over tensors, as one writes it."""
    ps, gs, anchors, copies = v.views
    norm = float(torch.stack([g.norm() for g in gs]).norm())
    short = min(1.0, CLIP / norm)
    for p, g in zip(ps, gs, strict=True):
        p.sub_(g * (RATE * short))
        if setting.noise:
            p.add_(torch.randn_like(p) * NOISE)
    if setting.ball:
        draw_in(ps, anchors, copies)


def draw_in(ps: list[Tensor], anchors: list[Tensor], copies: list[Tensor]) -> None:
    """Into the ball, and rounded into the copies."""
    apart = float(torch.stack([(p - a).norm() for p, a in zip(ps, anchors, strict=True)]).norm())
    factor = min(1.0, RADIUS / apart)
    for p, a, q in zip(ps, anchors, copies, strict=True):
        p.copy_(a + factor * (p - a))
        q.copy_(p)


def deepspeed(v: Vectors, setting: Setting) -> None:
    """As DeepSpeed's bf16 optimizer does it: its clipping of tensors in place, then torch's SGD on the flat masters. It knows no
    noise and no ball; they are written as one would, on the flat vector."""
    from deepspeed.runtime.utils import clip_tensors_by_global_norm

    assert v.moved.grad is not None
    clip_tensors_by_global_norm(list(v.moved.grad.tensor_split(TENSORS)), max_norm=CLIP)
    v.descent.step()
    if setting.noise:
        v.p.add_(torch.randn_like(v.p), alpha=NOISE)
    if setting.ball:
        draw_in([v.p], [v.a], [v.q])


def foreach(v: Vectors, setting: Setting) -> None:
    """torch's own horizontal fusion; noise into buffers, as there is no `_foreach` for it."""
    ps, gs, anchors, copies = v.views
    norm = float(torch.stack(torch._foreach_norm(gs)).norm())
    torch._foreach_add_(ps, gs, alpha=-RATE * min(1.0, CLIP / norm))
    if setting.noise:
        torch._foreach_add_(ps, [torch.randn_like(p) for p in ps], alpha=NOISE)
    if not setting.ball:
        return
    moved = torch._foreach_sub(ps, anchors)
    apart = float(torch.stack(torch._foreach_norm(moved)).norm())
    torch._foreach_mul_(moved, min(1.0, RADIUS / apart))
    torch._foreach_add_(moved, anchors)
    torch._foreach_copy_(ps, moved)
    torch._foreach_copy_(copies, moved)


def _whole(p: Tensor, g: Tensor, a: Tensor, q: Tensor, noise: bool, ball: bool) -> None:
    step = p - RATE * (CLIP / g.norm()).clamp(max=1.0) * g
    if noise:
        step = step + NOISE * torch.randn_like(p)
    if ball:
        moved = step - a
        step = a + (RADIUS / moved.norm()).clamp(max=1.0) * moved
        q.copy_(step)
    p.copy_(step)


COMPILED: Callable[..., None] = torch.compile(_whole, dynamic=False)


def compiled(v: Vectors, setting: Setting) -> None:
    """The whole flat update for inductor to fuse."""
    COMPILED(v.p, v.g, v.a, v.q, setting.noise, setting.ball)


def fused(v: Vectors, setting: Setting, cipher: Any = "philox") -> None:
    """Our kernels, as `pipeline.engine.fused` calls them."""
    kernels = choose(v.p.device)
    pull = -RATE * min(1.0, CLIP / math.sqrt(float(kernels.square(v.g, start=0))))
    draw = Draw(cipher, bytes(32 if cipher == "chacha20" else 8), 1) if setting.noise else None
    options: dict[str, Any] = {"start": 0, "anchor": v.a if setting.ball else None}
    sums = kernels.move(v.p, v.g, pull=pull, scale=NOISE, draw=draw, apart=setting.ball, **options)
    if setting.ball:  # it binds at each step, so the last pass alone writes the copy
        kernels.project(v.p, copy=v.q, factor=min(1.0, RADIUS / math.sqrt(float(sums[2]))), **options)


def secret(v: Vectors, setting: Setting) -> None:
    """The same with ChaCha20 for the noise."""
    fused(v, setting, "chacha20")


def stream(v: Vectors, setting: Setting) -> None:
    """p += x g, the simplest pass that reads two vectors and writes one of them: 12 bytes a weight."""
    v.p.add_(v.g, alpha=1e-9)


WAYS: tuple[Callable[[Vectors, Setting], None], ...] = (fused, secret, plain, deepspeed, foreach, compiled, stream)


def extra_bytes(act: Callable[[], object], device: torch.device) -> int:
    """Peak of what torch's allocator held beyond what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes two lines a profile otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def update(millions: int, count: int, device: torch.device) -> str:
    """The table for one size."""
    v = Vectors(millions * 1_000_000, device)
    digits = 2 if device.type == "cuda" else 0
    rows = [("update", "way", "ms: median (range)", "it / fused (95 %)", "% of bandwidth", "extra B")]
    for setting in SETTINGS:
        acts = {way.__name__: partial(way, v, setting) for way in WAYS if way is not secret or setting.noise}
        found = rounds({name: partial(timed, act, device) for name, act in acts.items()}, count)
        for name, times in found.items():
            rate = [setting.needed / one / (12 / base) for one, base in zip(times, found["stream"], strict=True)]
            reached = "" if name == "stream" else "{:.0f} ({:.0f} - {:.0f})".format(*(100 * part for part in interval(rate)))
            extra = f"{extra_bytes(acts[name], device) / len(v.p):.3f}"
            rows.append(
                (
                    setting.name,
                    name,
                    spread([1e3 * one for one in times], digits=digits),
                    ratio(times, found["fused"]),
                    reached,
                    extra,
                )
            )
        gc.collect()
    return f"## {millions} million weights\n\n" + table(*rows)


def eager_loss(prediction: Tensor, target: Tensor, hidden: Tensor, normal: bool) -> Tensor:
    """The released code of MAE."""
    if normal:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    errors = ((prediction - target) ** 2).mean(-1)
    return (errors * hidden).sum(1) / hidden.sum(1)


def loss(count: int, device: torch.device) -> str:
    """The table of the masked patch loss, forward and backward: 32 images of 196 patches of 768 numbers, 147 of them hidden."""
    generator = torch.Generator(device).manual_seed(0)
    prediction, target = (torch.randn(32, 196, 768, generator=generator, device=device) for _ in range(2))
    prediction.requires_grad_()
    hidden = torch.rand(32, 196, generator=generator, device=device).argsort(1) < 147
    rows = [("targets", "way", "ms: median (range)", "it / fused (95 %)", "extra MB")]

    def both_ways(one: Callable[..., Tensor], normal: bool) -> None:
        prediction.grad = None
        one(prediction, target, hidden, normal=normal).sum().backward()

    for name, normal in (("as they are", False), ("normalised by patch", True)):
        acts = {"fused": partial(both_ways, patch_loss, normal), "eager": partial(both_ways, eager_loss, normal)}
        found = rounds({way: partial(timed, act, device) for way, act in acts.items()}, 3 * count)
        for way, times in found.items():
            milliseconds = spread([1e3 * one for one in times], digits=2)
            rows.append((name, way, milliseconds, ratio(times, found["fused"]), f"{extra_bytes(acts[way], device) / 1e6:.0f}"))
    return "## Masked patch loss, forward and backward\n\n" + table(*rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, nargs="+", default=[85, 300])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=["update", "loss"], default=["update", "loss"])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    kernels = choose(given.device).name
    quiet_deepspeed(EngineConfig())
    print(f"{machine()}{gpu(given.device)}; torch {torch.__version__}, {kernels} kernels, {given.rounds} rounds\n", flush=True)
    if "update" in given.parts:
        with torch.no_grad():
            for millions in given.millions:
                print(update(millions, given.rounds, given.device), end="\n\n", flush=True)
    if "loss" in given.parts:
        print(loss(given.rounds, given.device), flush=True)


if __name__ == "__main__":
    main()
