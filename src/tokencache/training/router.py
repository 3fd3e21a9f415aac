"""The router loss of a mixture of experts, over all tokens of an optimizer step.

It keeps experts equally busy: experts times the sum, over experts, of the share of tokens that go
to one and of the mean probability that its router gives it (Fedus et al. 2021, arXiv:2101.03961,
equations 4 to 6), as transformers computes it. A product of means over a batch is not a mean of
products, so a step that is split into batches, by accumulation or among processes, would have
another loss than one that is not. So the shares are counted over the whole step first, by a
forward pass without gradients over each of its batches; with them, the loss is a sum over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from . import collectives, losses
from .attention import base
from .model import short

SWITCH = "output_router_logits"  # of transformers' configurations
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
LENGTH = 24


@dataclass(frozen=True)
class Choices:
    """What the routers of all layers chose: (experts,) how often each; of so many tokens, each
    counted once a layer."""

    times: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class Router:
    """top_k: experts that a token goes to. coefficient: of the router loss in the whole loss."""

    coefficient: float
    top_k: int

    def choices(self, logits: Iterable[torch.Tensor], inside: torch.Tensor) -> Choices:
        """logits: of each layer (tokens, experts); inside: (tokens,) bool, without padding."""
        times = tokens = 0
        for layer in _by_token(logits):
            chosen = layer.softmax(-1).topk(self.top_k, dim=-1).indices[inside]
            times = times + torch.bincount(chosen.flatten(), minlength=layer.shape[-1])
            tokens = tokens + inside.sum()
        return Choices(times.double(), tokens.double())

    def loss(
        self, logits: Iterable[torch.Tensor], inside: torch.Tensor, step: Choices
    ) -> torch.Tensor:
        """What a batch adds to a step's router loss; step: the choices of all of its tokens."""
        chances = sum(
            (layer.softmax(-1).float() * inside[:, None]).sum(0) for layer in _by_token(logits)
        )
        shares = (step.times / step.tokens).to(chances.dtype)
        return len(shares) * (shares * chances).sum() / step.tokens.to(chances.dtype)


def over_ranks(found: list[Choices]) -> Choices:
    """The sum over all batches of a step, on all ranks. Every rank calls this."""
    own = torch.stack([torch.cat([one.times, one.tokens[None]]) for one in found]).sum(0)
    total = collectives.summed({str(n): value for n, value in enumerate(own.tolist())})
    whole = torch.tensor(list(total.values()), dtype=own.dtype, device=own.device)
    return Choices(whole[:-1], whole[-1])


def _by_token(logits: Iterable[torch.Tensor | None]) -> Iterable[torch.Tensor]:
    """Those of layers that have experts."""
    return (layer.flatten(0, -2) for layer in logits if layer is not None)


def inside(lengths: list[int], width: int, device: torch.device) -> torch.Tensor:
    """(rows * width,) bool: the tokens of a batch that are no padding."""
    there = torch.arange(width) < torch.tensor(lengths)[:, None]
    return there.flatten().to(device)


def is_wanted(model: PreTrainedModel) -> bool:
    return bool(getattr(base(model).config.get_text_config(), SWITCH, False))


def find(model: PreTrainedModel, run: dict[str, Any]) -> Router | None:
    """The router loss that a model adds to its own; None where it adds none.

    Compared with the model's own on made-up rows, with the attention that it has. Raises UserError
    where it is another one.
    """
    if not is_wanted(model):
        return None
    advice = (
        f"models.{run['model']}: {model.config.model_type} adds a router loss of its own kind "
        f"({SWITCH}: true), which would depend on how a step is split into batches; set "
        f"{SWITCH}: false in its architecture, or in the config.json of its weights"
    )
    if run["pairs"]:
        raise UserError(advice)
    size = model.get_input_embeddings().weight.shape[0]
    length = min(LENGTH, run["max_length"])
    ids = torch.arange(1, 2 * length + 1).reshape(2, length) * 31 % size
    given = {"input_ids": ids.to(model.device), "labels": ids.to(model.device)}
    model.eval()
    try:
        with torch.no_grad():
            found = model(**given, attention_mask=torch.ones_like(given["input_ids"]))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"models.{run['model']}: the router loss of this model can't be checked "
            f"({short(error)}); set {SWITCH}: false"
        ) from None
    finally:
        model.train()
    own = getattr(found, "aux_loss", None)
    if own is None:
        return None  # a configuration that has the switch, of a model that has no such loss
    logits, there = found.router_logits, inside([length, length], length, model.device)
    coefficient = _coefficient(model)
    tokens = losses.of_tokens(found.logits, given["labels"], shifts=True).sum() / (2 * length - 2)
    if coefficient is not None and _is_close(found.loss, tokens + coefficient * own):
        for top_k in range(1, max(layer.shape[-1] for layer in _by_token(logits)) + 1):
            router = Router(coefficient, top_k)
            if _is_close(router.loss(logits, there, router.choices(logits, there)), own):
                return router
    raise UserError(advice)


def _coefficient(model: PreTrainedModel) -> float | None:
    places = (base(model), base(model).config.get_text_config())
    found = (getattr(place, name, None) for place in places for name in COEFFICIENTS)
    return next((value for value in found if value is not None), None)


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return math.isclose(float(one), float(other), rel_tol=1e-4)
