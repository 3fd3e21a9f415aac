"""What a run is made of: what its key is a hash of, and what its run.json says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..base.hashing import key_of

# Raise when the same cache, weights and settings train to other weights.
RUN_VERSION = 2

# Training settings that say how often to look and where to compute, not what.
NOT_IN_RUN_KEY = {
    "logging_steps", "eval_on_start", "save_steps", "save_minutes", "save_total_limit",
    "per_device_eval_batch_size", "nodes", "processes_per_node", "torch_compile",
    "dataloader_num_workers", "attn_implementation", "gradient_checkpointing", "fsdp", "mlflow",
}  # fmt: skip
# Settings that count only where others make them count.
ONLY_WHERE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "per_device_train_batch_size": lambda given: given["max_tokens"] is None,
    "num_train_epochs": lambda given: given["max_steps"] <= 0,
    "warmup_ratio": lambda given: _warms_up(given) and given["warmup_steps"] == 0,
    "warmup_steps": lambda given: _warms_up(given),
    # Which weights are validated; the best of them are taken.
    "eval_steps": lambda given: given["load_best_model_at_end"],
}
# Settings that are left out where they change nothing.
UNLESS_SET = {"max_tokens": None, "group_by_length": None, "tf32": None, "warmup_steps": 0,
              "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
              "label_smoothing_factor": 0.0, "load_best_model_at_end": False}  # fmt: skip


def _warms_up(given: dict[str, Any]) -> bool:
    return given["lr_scheduler_type"] != "constant"


def decisive(training: dict[str, Any], packed: bool) -> dict[str, Any]:
    """The training settings that decide the weights of a run."""
    given = training | {"max_steps": max(training["max_steps"], 0) or -1}
    by_tokens = given["max_tokens"] is not None
    if packed or given["group_by_length"] == by_tokens:  # which is the default
        given["group_by_length"] = None
    return {
        name: value
        for name, value in given.items()
        if name not in NOT_IN_RUN_KEY
        and (name not in ONLY_WHERE or ONLY_WHERE[name](given))
        and (name not in UNLESS_SET or value != UNLESS_SET[name])
    }


def made_of(run: dict[str, Any], packed: bool) -> dict[str, Any]:
    """run.json's "made_of", of a run of the plan. All of it but the place of the weights decides
    what comes out. The chat templates do so in the rows of chats alone, and the one for tools where
    rows may have some."""
    found = {
        "version": RUN_VERSION,
        "cache": run["rows_key"],
        "weights": run["weights"],
        "weights_files": run["weights_identity"],
        "lora": run["lora"],
        "architecture": run["architecture"],
        "chat_template": run["chat_template"] if run["chat"] else None,
        "tool_template": run["tool_template"] if run["tools"] else None,
        "training": decisive(run["training"], packed),
    }
    # The same commit of a hub may have code of its own for them; a folder's is among its files.
    if run["trust_remote_code"] and run["weights"] and run["weights"]["hub"]:
        found["trust_remote_code"] = True
    return found


def key(run: dict[str, Any], packed: bool) -> str:
    """Both formats of a cache give the same batches, and so the same weights."""
    found = {name: part for name, part in made_of(run, packed).items() if name != "weights"}
    return key_of(["run", found])
