"""What is not taken in without a person's word: values that no image has, and requests for more than was surely meant."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.errors import ConfigError
from pipeline.records import record

__all__ = ["SHARE", "Looked", "refuse_broad", "refuse_unknown"]

SHARE = 0.05
"""Of the training images: a request for more needs `--confirm`."""
WIDE = ("label", "prefix", "likeness")
"""Kinds of which one value may mean any number of images."""


@record
class Looked:
    """What an index says of a request: how many images it means, how many there are, which values are unknown.

    `unknown` and `first` are the number of values that mean no image, and the place of the first of them: from 1 on, or its row.
    """

    images: int
    training: int
    unknown: int = 0
    first: int = 0
    kind: str = ""


def refuse_unknown(looked: Looked, *, where: str = "request") -> None:
    """Raise ConfigError where a value means no image; the message has its place, not its text."""
    if looked.unknown:
        more = f", and {looked.unknown - 1} more" if looked.unknown > 1 else ""
        message = f"{where}: unknown {looked.kind}: number {looked.first} means no training image{more}"
        raise ConfigError(message, "correct the values, or index the source again: `unlearn index`")


def refuse_broad(kinds: Collection[str], looked: Looked | None, *, share: float = SHARE, where: str = "request") -> None:
    """Refuse a request for more images than `share` of all, or for nobody knows how many.

    Args:
        kinds: of the request, or of all requests of a file.
        looked: what the index says; None: there is none.
        share: of the training images, 0 to 1.
        where: named in the message.

    Raises:
        ConfigError: too broad; the message says the number.
    """
    if looked is None:
        wide = sorted(set(kinds) & set(WIDE))
        if wide:
            message = f"{where}: may be too broad: {' and '.join(wide)}, and no index says how many images that means"
            raise ConfigError(message, "index the source (`unlearn index`), or say --confirm")
        return
    if looked.images > share * looked.training:
        part = looked.images / max(1, looked.training)
        message = (
            f"{where}: too broad: means {looked.images} of {looked.training} training images ({part:.1%}, more than {share:.1%})"
        )
        raise ConfigError(message, "ask for less, or say --confirm")
