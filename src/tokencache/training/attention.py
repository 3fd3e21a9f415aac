"""Which attention a run computes with, and the check that its packed documents are kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from ..errors import UserError
from .collate import COUNTS, Collator
from .model import short
from .packed_attention import FLASH, PER_DOCUMENT, VARLEN, documents_mask, flash, varlen_attn

KEY = "training.attn_implementation"
FOR_PACKED = (PER_DOCUMENT, VARLEN)
IN_HALF = (VARLEN, *FLASH)  # for a GPU, and for bfloat16 and float16
NO_DROPOUT = (VARLEN, "flash_attention_3")
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
KINDS = {
    "eager": "no kernel of its own",
    "sdpa": "PyTorch's own kernels, on CPU and GPU",
    PER_DOCUMENT: "PyTorch's own kernels, on documents of like length together",
    VARLEN: "PyTorch's own flash kernel, told where documents end",
    "flash_attention_2": "the package flash-attn, told where documents end",
    "flash_attention_3": "the package flash-attn-3, told where documents end",
    "flex_attention": "compiled by PyTorch, with a mask by blocks",
}

# Packed logits differ from the documents' own by 1e-6 of their spread where documents are
# kept apart, and by more than 1 where they are not. In half precision by some hundredths, and
# by more in single tokens that a router of experts sends elsewhere.
TOLERANCE, HALF_TOLERANCE = 0.02, 0.25
MEDIAN_OF = 5  # tokens that a document must have for that
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose(
    model: PreTrainedModel, run: dict[str, Any], collate: Collator, packed: bool, precision: str
) -> list[str]:
    """Set the attention of a model that is on its device; returns lines for the log.

    By training.attn_implementation and, where that is `auto`, by the hardware and by what gives
    packed documents the logits that they have alone. Raises UserError where what was asked for
    can't be had, and for packed rows where none gives those logits.
    """
    wanted, own = run["training"]["attn_implementation"], base(model).config._attn_implementation
    if not packed:
        if wanted in FOR_PACKED:
            lines = [_line(own, f"these rows are not packed, and {wanted} is for those", run)]
        elif wanted == "auto":
            lines = [_line(own, _why(own), run)]
        else:
            _take(model, wanted, precision, packed)
            lines = [_line(wanted, f"as {KEY} says", run)]
        return lines
    if wanted != "auto":
        _take(model, wanted, precision, packed)
        worst = check_packing(model, run, collate, precision)
        return [_line(wanted, f"as {KEY} says", run), _kept_apart(worst)]
    failed = []
    for name in _candidates(precision):
        if _problem(model, name, precision, packed) is None:
            try:
                worst = check_packing(model, run, collate, precision)
                return [*failed, _line(name, f"auto: {KINDS[name]}", run), _kept_apart(worst)]
            except UserError as error:
                failed.append(f"{name} is not taken: {error}")
    base(model).set_attn_implementation(own)
    worst = check_packing(model, run, collate, precision)
    return [*failed, _line(own, _why(own), run), _kept_apart(worst)]


def _candidates(precision: str) -> Iterator[str]:
    """What is faster than a mask over whole rows, the fastest first."""
    if not torch.cuda.is_available():
        yield PER_DOCUMENT
    elif precision in DTYPES:
        if is_flash_attn_3_available():
            yield "flash_attention_3"
        yield VARLEN
        if is_flash_attn_2_available():
            yield "flash_attention_2"


def _why(own: str) -> str:
    return "this architecture has no other" if own == "eager" else f"auto: {KINDS[own]}"


def _line(name: str, why: str, run: dict[str, Any]) -> str:
    """What is said of attention, and of how the layers around it are computed."""
    said = f"attention {name} ({why})"
    if run["training"]["torch_compile"]:
        said += "; the model is compiled, as training.torch_compile says"
    if run["training"]["gradient_checkpointing"]:
        said += "; activations are computed twice, as training.gradient_checkpointing says"
    return said


def _kept_apart(worst: float) -> str:
    return f"packed rows: documents are kept apart (logits differ by {worst:.0e} of their spread)"


def base(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself where it has an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _take(model: PreTrainedModel, name: str, precision: str, packed: bool) -> None:
    problem = _problem(model, name, precision, packed)
    if problem is not None:
        raise UserError(f"{KEY}: {name} {problem}; leave it out, which takes what fits best")


def _problem(model: PreTrainedModel, name: str, precision: str, packed: bool) -> str | None:
    """Why this machine or model can't have this attention, which is set otherwise."""
    model, cuda = base(model), torch.cuda.is_available()
    config = model.config.get_text_config()
    if name in IN_HALF:
        if not cuda or torch.version.hip or torch.cuda.get_device_capability() < (8, 0):
            return "needs a GPU of NVIDIA, Ampere or newer, and there is none here"
        if precision not in DTYPES:
            return f"computes in bfloat16 and float16, and training.precision is {precision} here"
        if name == VARLEN and varlen_attn is None:
            return f"needs PyTorch 2.10 or newer, and this is {torch.__version__}"
        if getattr(config, "attention_chunk_size", None):
            return "has no chunks, by which this architecture attends"
    if name in NO_DROPOUT and any(getattr(config, word, None) for word in DROPOUTS):
        return "has no dropout, which the attention of this model has"
    if name == "flex_attention" and not cuda:
        return "trains on a GPU only, and there is none here"
    if name in FLASH and packed:  # with padding they take transformers' own mask
        AttentionInterface.register(name, flash)
        AttentionMaskInterface.register(name, documents_mask)
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        return f"can't be used with this model or machine ({short(error)})"
    if model.config._attn_implementation != name:
        return f"can't be set for {model.config.model_type}, whose attention is its own"
    return None


def check_packing(
    model: PreTrainedModel, run: dict[str, Any], collate: Collator, precision: str = "float32"
) -> float:
    """Compare packed logits with the documents' own; returns their largest difference.

    In units of the logits' spread. In the run's precision where its attention is for that one
    alone, else in float32. Raises UserError where the model would let a document see the one
    before it in its row.
    """
    size = model.get_input_embeddings().weight.shape[0]
    rows = [_sample_row(lengths, run, size) for lengths in ((9, 1, 14), (6, 5))]
    batch = collate([row for row, _ in rows])
    batch.pop(COUNTS), batch.pop("labels")
    where = f"models.{run['model']} on datasets.{run['dataset']}"
    advice = f"set packing: none for datasets.{run['dataset']}"
    half = model.config._attn_implementation in IN_HALF
    try:
        packed = logits_of(model, batch, precision, half)
        found = []
        for number, (row, lengths) in enumerate(rows):
            start = 0
            for length in lengths:
                ids = torch.from_numpy(row["input_ids"][None, start : start + length])
                alone = {"input_ids": ids, "use_cache": False}
                alone = logits_of(model, alone, precision, half)
                found.append(off(packed[number, start : start + length], alone, half))
                start += length
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"{where}: this model can't be used with packed rows ({short(error)}); {advice}"
        ) from None
    worst = float(np.max(found))  # NaN where one is
    if not worst <= (HALF_TOLERANCE if half else TOLERANCE):
        raise UserError(
            f"{where}: in packed rows this model ({model.config.model_type}) does not keep "
            f"documents apart: its logits are off by {worst:.2g} of their spread; {advice}"
        )
    return worst


def off(packed: torch.Tensor, alone: torch.Tensor, half: bool) -> float:
    """How far logits (tokens, vocabulary) are from those (1, tokens, vocabulary) of a document."""
    alone = alone[0]
    by_token = (packed - alone).abs().amax(-1) / alone.std().clamp(min=1e-12)
    if not half:
        return by_token.max().item()
    return by_token.median().item() if len(by_token) >= MEDIAN_OF else 0.0


def _sample_row(
    lengths: tuple[int, ...], run: dict[str, Any], size: int
) -> tuple[dict[str, Any], list[int]]:
    """A packed row of made-up documents of these lengths, which max_length may cut."""
    cut = [min(length, run["max_length"]) for length in lengths]
    ids = np.arange(1, sum(cut) + 1) * 31 % size
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": np.concatenate([np.arange(length) for length in cut]),
        "seq_lengths": np.array(cut),
    }, cut


def logits_of(
    model: PreTrainedModel, batch: dict[str, Any], precision: str, half: bool
) -> torch.Tensor:
    """The logits of a batch in float32, without dropout; half: whether they are computed in the
    run's precision, and not in float32."""
    given = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batch.items()}
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, DTYPES.get(precision), half):
            return model(**given).logits.float()
    finally:
        model.train()
