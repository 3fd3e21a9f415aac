"""What a run chooses for its hardware, precision, kernels and loader, and why."""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import shutil
import sys
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError

# Peak bfloat16 FLOPs per second with float32 sums and without sparsity, by NVIDIA's data sheets.
# The first word or words that a GPU's name begins with, after the maker's, count.
PEAKS = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200 NVL": 836e12, "H200": 989e12,
    "H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12,
    "L40S": 362e12, "L40": 181e12, "L4": 121e12, "RTX 6000 Ada": 364.2e12,
    "GeForce RTX 4090": 165.2e12, "A100": 312e12, "A800": 312e12, "A40": 149.7e12,
    "A30": 165e12, "A10": 125e12, "RTX A6000": 154.8e12, "GeForce RTX 3090": 71e12,
}  # fmt: skip

OPTIMIZER = "adamw_torch_fused"
ADVICE = "take auto, float32 or bfloat16"


@dataclass(frozen=True)
class Hardware:
    """peak: bfloat16 FLOPs per second of the device, where they are known. lines: what was
    chosen and why, by what it is about."""

    device: str
    precision: str
    tf32: bool | None
    workers: int
    peak: float | None
    lines: dict[str, str]

    def arguments(self, compiled: bool) -> dict[str, Any]:
        """For transformers.TrainingArguments."""
        return {
            "bf16": self.precision == "bfloat16",
            "fp16": self.precision == "float16",
            "tf32": self.tf32,
            "optim": OPTIMIZER,
            "torch_compile": compiled,
            "dataloader_num_workers": self.workers,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }


def choose(training: dict[str, Any]) -> Hardware:
    """By the settings and by what this process runs on.

    Raises UserError where a setting asks for what is not there.
    """
    cuda = torch.cuda.is_available()
    precision, why = _precision(training["precision"], cuda)
    tf32, why_tf32 = _tf32(training, cuda)
    workers, why_workers = _workers(training["dataloader_num_workers"], cuda)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    if training["torch_compile"]:
        _check_compiler(cuda)
    lines = {
        "precision": f"{precision} ({why}); TF32 {why_tf32}",
        "optimizer": f"{OPTIMIZER}: one kernel updates all weights, on CPU and GPU",
        "workers": f"{workers} ({why_workers})" + ("; pinned memory" if cuda else ""),
    }
    return Hardware(name, precision, tf32, workers, peak(name) if cuda else None, lines)


def peak_memory() -> int:
    """Bytes: of the GPU's memory where there is one, else of this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _precision(wanted: str, cuda: bool) -> tuple[str, str]:
    # Other GPUs do bfloat16 too, by emulation.
    bfloat16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "float16" and not cuda:
        raise UserError(
            f"training.precision: float16 needs a GPU, and there is none here; {ADVICE}"
        )
    if wanted == "bfloat16" and cuda and not bfloat16:
        raise UserError("training.precision: this GPU has no bfloat16; take auto or float16")
    if wanted != "auto":
        return wanted, "as training.precision says"
    if bfloat16:
        return "bfloat16", "auto: this GPU has it"
    if cuda and torch.cuda.get_device_capability() >= (7, 0):
        return "float16", "auto: this GPU is fast with it, and has no bfloat16"
    return "float32", "auto: " + ("this GPU has no faster one" if cuda else "there is no GPU")


def _tf32(training: dict[str, Any], cuda: bool) -> tuple[bool | None, str]:
    """Whether matrices of float32 are multiplied as TF32: not where float32 was asked for."""
    wanted = training["tf32"]
    if not (cuda and torch.cuda.get_device_capability() >= (8, 0) and not torch.version.hip):
        if wanted:
            raise UserError("training.tf32: needs a GPU with TF32 (NVIDIA, Ampere or newer); "
                            "leave it out")  # fmt: skip
        return None, "off (no GPU that has it)"
    if wanted is not None:
        return wanted, f"{'on' if wanted else 'off'} (as training.tf32 says)"
    if training["precision"] == "float32":
        return False, "off (training.precision asks for float32)"
    return True, "on (for what is left in float32)"


def _workers(wanted: int | None, cuda: bool) -> tuple[int, str]:
    if wanted is not None:
        return wanted, "as training.dataloader_num_workers says"
    if not cuda:
        return 0, "batches are made between steps: the cores are for the model"
    # One keeps ahead of the GPU: a batch of memory-mapped rows takes about a millisecond.
    return 1, "makes batches while the GPU computes"


def _check_compiler(cuda: bool) -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if cuda:
        compilers = [os.environ.get("CC", "cc"), "gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"training.torch_compile: needs a compiler ({' or '.join(compilers)}), and there is "
            "none here; install one, or leave torch_compile out"
        )
    if cuda and importlib.util.find_spec("triton") is None:
        raise UserError("training.torch_compile: needs triton, and it is not installed; "
                        "install it, or leave torch_compile out")  # fmt: skip


def peak(name: str) -> float | None:
    """Peak bfloat16 FLOPs per second of a GPU by its name, where it is known."""
    short = name.removeprefix("NVIDIA ")
    return next((flops for word, flops in PEAKS.items() if re.match(rf"{word}\b", short)), None)
