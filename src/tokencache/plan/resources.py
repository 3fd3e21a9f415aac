"""What a job asks a cluster for, from the size of its work.

Upper bounds with room to spare on a slow or busy node: too much waits a little longer in the
queue, too little fails and is tried again with twice as much. The time is a job's only end
where its node dies without a word, so it is no larger than that needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..base import limits
from ..base.json_files import read_json
from .experts import experts
from .plan import Plan

MB = 1e6
BASE_MB = 1000  # Python, its libraries and what they keep in hand
BASE_MINUTES = 5  # a container that starts on a busy network disk
MOST_MB = 64_000
MOST_MINUTES = 24 * 60  # the limit of many partitions
COMPRESSED = 5  # bytes of text in one of a compressed file

# Half of what was seen of the slowest engine, of training tokenizers and of packing on two
# busy cores.
TOKENIZED_MB_A_MINUTE = 20
TRAINED_ON_MB_A_MINUTE = 30
PACKED_MB_A_MINUTE = 300

SMALL_TEXT_MB = 16  # to train a tokenizer on; more takes more threads
SMALL_HIDDEN = 256
FLOPS_A_THREAD = 2e9  # of a CPU, and less than it can
TRAINING_MB = 2000  # torch and what it keeps in hand
BYTES_A_PARAMETER = 24  # float32: weights, gradients, two moments; another two while loading
FROZEN_BYTES_A_PARAMETER = 12  # float32 weights that an adapter is trained on, and loading them
UNKNOWN_PARAMETERS = 1_000_000_000  # of weights on a hub, which the plan does not open


@dataclass(frozen=True)
class Needs:
    """Of a job's first attempt."""

    threads: int
    mem_mb: int
    minutes: int

    def of_attempt(self, attempt: int) -> Needs:
        """Twice the memory and time of the attempt before, up to four times those of the first.

        Attempts after the third are for jobs that are stopped again and again, as where
        jobs are preempted: what they need, they had.
        """
        more = 2 ** min(attempt - 1, 2)
        return Needs(self.threads, self.mem_mb * more, min(self.minutes * more, MOST_MINUTES))


@cache
def tokenizing(plan: Plan, batch: str) -> Needs:
    """Of a batch: it streams, so only its largest shard counts for memory."""
    sizes = [_text_mb(plan, plan.shard_of(key)) for key in plan.batches[batch]["tokens"]]
    return _needs(limits.asked(2), 4 * max(sizes), sum(sizes) / TOKENIZED_MB_A_MINUTE)


@cache
def training_tokenizer(plan: Plan, folder: str) -> Needs:
    texts = plan.tokenizers[folder]["texts"]
    size = sum(_text_mb(plan, plan.data["shards"][shard]) for _, shard in texts)
    threads = limits.asked(2 if size <= SMALL_TEXT_MB else 8)
    return _needs(threads, 2 * size, size / TRAINED_ON_MB_A_MINUTE)


@cache
def packing(plan: Plan, path: str) -> Needs:
    """Of a cache: its token shards are mapped, which some sites count as memory."""
    size = _set_mb(plan, plan.caches[path]["token_set"])
    return _needs(1, 2 * size, size / PACKED_MB_A_MINUTE)


@cache
def training(plan: Plan, path: str) -> Needs:
    """Of a run on each of its nodes, on CPUs: a GPU needs less time and no more memory."""
    run = plan.runs[path]
    target = plan.caches[run["cache"]]
    vocabulary = plan.tokenizers[run["tokenizer"]]["facts"]["vocab_size"]
    size = _size(run, vocabulary)
    settings = run["training"]
    # A small model trains faster on one thread than on several that wait for each other.
    threads, processes = 1 if size.hidden <= SMALL_HIDDEN else 8, settings["processes_per_node"]
    rows = settings["per_device_train_batch_size"]
    sides = 2 if run["pairs"] else 1  # each has max_length, or max_tokens, to itself
    in_a_batch = sides * (settings["max_tokens"] or rows * target["max_length"])
    in_a_step = in_a_batch * settings["gradient_accumulation_steps"]
    activations = in_a_batch * 4 * (size.layers * 32 * size.hidden + 4 * vocabulary)
    a_parameter = FROZEN_BYTES_A_PARAMETER if run["lora"] else BYTES_A_PARAMETER
    memory = TRAINING_MB + (a_parameter * size.parameters + activations) / MB
    if settings["max_steps"] > 0:
        tokens = settings["max_steps"] * in_a_step
    else:
        # A token stands for two bytes of text or more.
        tokens = settings["num_train_epochs"] * _set_mb(plan, target["token_set"]) * MB / 2
    flops = 6 * tokens * (size.computing + vocabulary * size.hidden)
    # The batch of a step is shared out among the processes, so more are no slower.
    minutes = flops / (FLOPS_A_THREAD * threads) / 60
    return _needs(threads * processes, memory * processes, minutes)


def _needs(threads: int, more_mb: float, more_minutes: float) -> Needs:
    memory = min(BASE_MB + math.ceil(more_mb), MOST_MB)
    return Needs(threads, memory, min(BASE_MINUTES + math.ceil(more_minutes), MOST_MINUTES))


@cache
def _set_mb(plan: Plan, token_set: str) -> float:
    """Of all source shards of a token set, which many caches share."""
    splits = plan.token_sets[token_set]["splits"].values()
    return sum(_text_mb(plan, plan.shard_of(key)) for keys in splits for key in keys)


def _text_mb(plan: Plan, shard: dict[str, Any]) -> float:
    """Of a source shard; of one that is not fetched yet, as large as shards are cut."""
    size = shard["bytes"] or plan.data["config"]["shard_size"]
    return size * (COMPRESSED if shard["compression"] else 1) / MB


@dataclass(frozen=True)
class Size:
    """Of a model. computing: those of its parameters that a token is multiplied with."""

    hidden: int
    layers: int
    parameters: float
    computing: float


def _size(run: dict[str, Any], vocabulary: int) -> Size:
    """The size of a run's model; guesses where it does not say."""
    folder = Path(run["weights"]["path"]) if run["weights"] and run["weights"]["path"] else None
    given = run["architecture"] or {}
    if folder and (folder / "config.json").exists():
        given = read_json(folder / "config.json")
    if isinstance(given.get("text_config"), dict):
        given = given["text_config"]
    hidden = _first(given, ("hidden_size", "n_embd", "d_model"), 1024)
    names = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")
    layers = encoder = _first(given, names, 24)
    if run["pairs"]:
        layers += _first(given, ("decoder_layers", "num_decoder_layers"), encoder)
    if run["weights"] and folder is None:
        return Size(hidden, layers, UNKNOWN_PARAMETERS, UNKNOWN_PARAMETERS)
    inner, idle = _inner(given, hidden, layers)
    if folder:
        # Two bytes a parameter at least.
        parameters = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2
    else:
        parameters = layers * 4 * hidden**2 + 3 * hidden * inner + 2 * hidden * vocabulary
    # The configuration may say less of the experts than there is.
    return Size(hidden, layers, parameters, max(parameters - 3 * hidden * idle, parameters / 100))


def _inner(given: dict[str, Any], hidden: int, layers: int) -> tuple[int, int]:
    """The inner sizes of all layers together, and those of experts that do not compute a token."""
    names = ("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim")
    dense = _first(given, names, 4 * hidden)
    mixture = experts(given.get)
    if mixture is None:
        return layers * dense, 0
    expert = _first(given, ("moe_intermediate_size",), dense)
    first = min(_first(given, ("first_k_dense_replace",), 0), layers)  # without experts
    shared = _first(given, ("n_shared_experts",), 0) * expert
    shared = _first(given, ("shared_expert_intermediate_size",), shared)
    in_all = first * dense + (layers - first) * (mixture.count * expert + shared)
    return in_all, (layers - first) * (mixture.count - mixture.chosen) * expert


def _first(given: dict[str, Any], names: tuple[str, ...], otherwise: int) -> int:
    """The first of these fields that is a number; configurations nest others."""
    return next((given[name] for name in names if isinstance(given.get(name), int)), otherwise)
