"""Mixtures of experts, by their configuration: how many experts there are, and how many compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Names of architectures in transformers.
COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k")


@dataclass(frozen=True)
class Experts:
    """count: in a layer; chosen: those that compute a token."""

    count: int
    chosen: int

    @property
    def share(self) -> float:
        return self.chosen / self.count


def experts(field: Callable[[str], Any]) -> Experts | None:
    """Those of a configuration; field: a value of it by name, None where it has none."""
    found = [next((v for v in map(field, names) if isinstance(v, int)), 0)
             for names in (COUNTS, CHOSEN)]  # fmt: skip
    count, chosen = found
    return Experts(count, chosen) if 0 < chosen <= count else None
