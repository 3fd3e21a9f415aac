"""`tokencache unpin …`: what was pinned may go again."""

from __future__ import annotations

import argparse

from ..base import marks
from . import pin

add_words = pin.add_words


def run(arguments: argparse.Namespace) -> None:
    """As `pin`; one that is not pinned stays so."""
    pin.mark(arguments, marks.unpin, "unpinned")
