"""Attention within the documents of packed rows, without a mask over whole rows.

Registered with transformers under the names PER_DOCUMENT and VARLEN. Of transformers' function
that says which token may attend to which, only what is needed to find the documents is asked;
where it is no causal one over documents, it becomes the mask that SDPA gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # older than PyTorch 2.10
    varlen_attn = None

PER_DOCUMENT, VARLEN = "sdpa_per_document", "varlen"
FLASH = ("flash_attention_3", "flash_attention_2")
# Documents of a group are padded to its longest one: by a quarter at most, or by so many tokens.
SLACK = 16
NOT_DONE = ("softcap", "s_aux", "position_bias")  # of single architectures

Allowed = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Group:
    """Documents of like lengths: `count` of them, padded to `length`, after those of the groups
    before. mask: (count, 1, length, length) bool, or None where it is the causal one."""

    count: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Documents:
    """The documents of a batch of `rows` rows of `width` tokens; stands for an attention mask.

    starts, lengths: (documents,) int64, in flat tokens of the batch and in its order; each token
    is in one document, padding in one of its own. allowed: says by numbers of row, head, query
    and key, which broadcast, where a query sees a key.
    """

    rows: int
    width: int
    starts: np.ndarray
    lengths: np.ndarray
    allowed: Allowed
    device: torch.device

    @cached_property
    def longest(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def ends(self) -> torch.Tensor:
        """(documents + 1,) int32: 0 and the flat end of each document."""
        found = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)
        return torch.from_numpy(found).to(self.device)

    @cached_property
    def window(self) -> int | None:
        """How many keys a query sees at most, itself included; None where it sees all before it."""
        number = int(self.lengths.argmax())
        row, start = divmod(int(self.starts[number]), self.width)
        keys = torch.arange(start, start + self.longest, device=self.device)
        seen = int(self.allowed(self._tensor(row), self._tensor(0), keys[-1], keys).sum())
        return None if seen == self.longest else seen

    @cached_property
    def groups(self) -> tuple[list[Group], torch.Tensor, torch.Tensor]:
        """The groups; the flat token in each of their places; the place of each flat token."""
        order = np.argsort(self.lengths, kind="stable")
        ordered, at, place = self.lengths[order], 0, 0
        groups, there, back = [], [], np.empty(self.rows * self.width, np.int64)
        while at < len(order):
            most = ordered[at] + max(ordered[at] // 4, SLACK)
            end = int(np.searchsorted(ordered, most, side="right"))
            chosen, length = order[at:end], int(ordered[end - 1])
            own = np.minimum(np.arange(length), self.lengths[chosen, None] - 1)
            tokens = self.starts[chosen, None] + own
            # The last token's copies, which are the padding, come after it, so no token sees them.
            real = np.arange(length) < self.lengths[chosen, None]
            back[tokens[real]] = place + np.flatnonzero(real)
            groups.append(Group(end - at, length, self._mask(chosen, tokens)))
            there.append(tokens.ravel())
            at, place = end, place + tokens.size
        return groups, self._tensor(np.concatenate(there)), self._tensor(back)

    def _mask(self, chosen: np.ndarray, tokens: np.ndarray) -> torch.Tensor | None:
        rows, first = self._tensor(self.starts[chosen] // self.width), self._tensor(tokens[:, 0])
        last, zero = self._tensor(tokens[:, -1]), self._tensor(0)
        if self.allowed(rows, zero, last % self.width, first % self.width).all():
            return None  # a window, or a chunk, that is at least as long as these documents
        at = self._tensor(tokens) % self.width
        seen = self.allowed(rows[:, None, None], zero, at[:, :, None], at[:, None, :])
        return seen.tril()[:, None]

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, device=self.device)


def find_documents(
    batch_size: int, q_length: int, kv_length: int, mask_function: Allowed, device: torch.device
) -> Documents | None:
    """The documents of a batch by what a token sees of the one before it.

    None where that is no question of documents: with a cache, and where a token sees the next.
    """
    rows = torch.arange(batch_size, device=device)[:, None]
    zero, places = torch.zeros((), dtype=torch.long, device=device), torch.arange(q_length)
    places = places.to(device)
    if q_length != kv_length or q_length < 2:
        return None
    if mask_function(rows, zero, places[None, :-1], places[None, 1:]).any():
        return None
    begins = torch.ones(batch_size, q_length, dtype=torch.bool, device=device)
    begins[:, 1:] = ~mask_function(rows, zero, places[None, 1:], places[None, :-1])
    starts = np.flatnonzero(begins.cpu().numpy())
    lengths = np.diff(starts, append=batch_size * q_length)
    return Documents(batch_size, q_length, starts, lengths, mask_function, device)


@torch.compiler.disable
def documents_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Allowed,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | None = None,
    **more: Any,
) -> Documents | torch.Tensor | None:
    """For AttentionMaskInterface: the documents, or the mask that SDPA has of transformers."""
    found = None
    if attention_mask is None and not use_vmap:  # else what it asks for is not told by places
        found = find_documents(batch_size, q_length, kv_length, mask_function, device)
    if found is not None:
        return found
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, mask_function=mask_function,
        attention_mask=attention_mask, use_vmap=use_vmap, device=device, **more,
    )  # fmt: skip


def _check(name: str, more: dict[str, Any], causal: bool) -> None:
    """Raises ValueError, which means another attention to who chooses."""
    for word in NOT_DONE:
        if more.get(word) is not None:
            raise ValueError(f"{name} attention has no {word}, which this architecture asks for")
    if not causal:
        raise ValueError(f"{name} attention is for causal models")


def _flat(states: torch.Tensor) -> torch.Tensor:
    """(rows, heads, width, size) to (tokens, heads, size)."""
    return states.transpose(1, 2).flatten(0, 1)


def _wide(value: torch.Tensor, size: int) -> torch.Tensor:
    """Fast kernels want values as wide as keys; those of latent attention are narrower."""
    return functional.pad(value, [0, size - value.shape[-1]])


# What attends within documents: query, key and value of (tokens, heads, size) each, the documents,
# dropout and scaling; gives (tokens, heads, size).
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, "Documents", float, float | None], torch.Tensor
]


def _for_rows(name: str) -> Callable[[Kernel], Callable[..., tuple[torch.Tensor, None]]]:
    """For AttentionInterface: a kernel for documents, and SDPA where they are not told.

    query, key, value: (rows, heads, width, size); gives (rows, width, heads, size).
    """

    def made(kernel: Kernel) -> Callable[..., tuple[torch.Tensor, None]]:
        @torch.compiler.disable
        def attend(
            module: torch.nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attention_mask: Documents | torch.Tensor | None,
            dropout: float = 0.0,
            scaling: float | None = None,
            is_causal: bool | None = None,
            **more: Any,
        ) -> tuple[torch.Tensor, None]:
            if not isinstance(attention_mask, Documents):
                return sdpa_attention_forward(
                    module, query, key, value, attention_mask, dropout, scaling, is_causal, **more
                )
            causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
            _check(name, more, causal)
            states = [_flat(s) for s in (query, key, _wide(value, query.shape[-1]))]
            output = kernel(*states, attention_mask, dropout, scaling)[..., : value.shape[-1]]
            rows = attention_mask.rows, attention_mask.width
            return output.unflatten(0, rows).contiguous(), None

        return attend

    return made


@_for_rows(PER_DOCUMENT)
def per_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """SDPA of documents of like length together."""
    groups, there, back = documents.groups
    sizes, outputs = [group.count * group.length for group in groups], []
    parted = (states[there].split(sizes) for states in (query, key, value))
    for group, *parts in zip(groups, *parted, strict=True):
        q, k, v = (s.unflatten(0, (group.count, group.length)).transpose(1, 2) for s in parts)
        found = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=group.mask, dropout_p=dropout, is_causal=group.mask is None,
            scale=scaling, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(_flat(found))
    return torch.cat(outputs)[back]


@_for_rows(VARLEN)
def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """PyTorch's flash kernel for sequences of several lengths."""
    if dropout:
        raise ValueError(f"{VARLEN} attention has no dropout")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        query, key, value = (states.to(dtype) for states in (query, key, value))
    return call_varlen(varlen_attn, query, key, value, documents, scaling)


def call_varlen(
    kernel: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float | None,
) -> torch.Tensor:
    """Call `varlen_attn` with the words that this version of it knows.

    PyTorch 2.10 has `is_causal` and neither scale, windows nor heads that share keys; later ones
    have `scale`, `window_size` and `enable_gqa`, by which causal is a window to the right of 0.
    query, key, value: (tokens, heads, size). Raises ValueError for a window that it has not.
    """
    known = inspect.signature(kernel).parameters
    words: dict[str, Any] = {}
    if "window_size" in known:
        words["window_size"] = (-1 if documents.window is None else documents.window - 1, 0)
    elif documents.window is not None:
        raise ValueError("this version of PyTorch has no varlen attention with a window")
    else:
        words["is_causal"] = True
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in known:
            words["enable_gqa"] = True
        else:
            times = query.shape[1] // key.shape[1]
            key, value = (s.repeat_interleave(times, dim=1) for s in (key, value))
    if scaling is not None:
        if "scale" in known:
            words["scale"] = scaling
        else:
            query = query * (scaling * query.shape[-1] ** 0.5)
    ends, longest = documents.ends, documents.longest
    return kernel(query, key, value, ends, ends, longest, longest, **words)


@torch.compiler.disable
def flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Documents | torch.Tensor | None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """For AttentionInterface: the package flash-attn, told where documents end.

    Transformers tells it by itself for batches of one row only.
    """
    if isinstance(attention_mask, Documents):
        documents, attention_mask = attention_mask, None
        more |= {
            "cu_seq_lens_q": documents.ends, "cu_seq_lens_k": documents.ends,
            "max_length_q": documents.longest, "max_length_k": documents.longest,
        }  # fmt: skip
    return flash_attention_forward(module, query, key, value, attention_mask, **more)


AttentionInterface.register(PER_DOCUMENT, per_document)
AttentionMaskInterface.register(PER_DOCUMENT, documents_mask)
AttentionInterface.register(VARLEN, varlen)
AttentionMaskInterface.register(VARLEN, documents_mask)
