"""What training would compute on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from . import FAIL, OK, WARN, Finding, answer

BACK_ENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


def check() -> Iterator[Finding]:
    driver = shutil.which("nvidia-smi") is not None and answer("nvidia-smi", "-L")[1]
    try:
        import torch
    except ImportError:
        yield Finding(
            WARN, "torch", "not installed here; only training needs it",
            "nothing, where jobs of training run in images; else install envs/train.lock",
        )  # fmt: skip
        return
    if not torch.cuda.is_available():
        yield _without(torch, driver)
        yield _kernels(torch, "cpu", torch.float32)
        return
    for number in range(torch.cuda.device_count()):
        yield from _gpu(torch, number)
    yield _kernels(torch, "cuda", torch.bfloat16)


def _without(torch: Any, driver: str | bool) -> Finding:
    if not driver or not driver.startswith("GPU"):
        return Finding(OK, "GPU", "none: training computes on the CPU, in float32")
    if torch.version.cuda is None and torch.version.hip is None:
        said, remedy = f"torch {torch.__version__} is built without CUDA", "install one with it"
    else:
        said = f"torch {torch.__version__} can't use it"
        remedy = "look at CUDA_VISIBLE_DEVICES and at the driver's version in nvidia-smi"
    return Finding(FAIL, "GPU", f"{driver.splitlines()[0]}, but {said}", remedy)


def _gpu(torch: Any, number: int) -> Iterator[Finding]:
    about = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    name = f"GPU {number}"
    said = f"{about.name}, {total / 1e9:.0f} GB, compute capability {about.major}.{about.minor}"
    if free < total / 2:
        yield Finding(
            WARN, name, f"{said}, only {free / 1e9:.0f} GB of it free",
            "see in nvidia-smi who holds it",
        )  # fmt: skip
    else:
        yield Finding(OK, name, said)
    with torch.cuda.device(number):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    tf32 = (about.major, about.minor) >= (8, 0) and not torch.version.hip
    said = f"bfloat16 {'yes' if bfloat16 else 'no'}, TF32 {'yes' if tf32 else 'no'}"
    remedy = "" if bfloat16 else "training.precision: auto takes float16 or float32 here"
    yield Finding(OK if bfloat16 else WARN, name, said, remedy)


def _kernels(torch: Any, device: str, dtype: Any) -> Finding:
    """Which of PyTorch's attention kernels run, tried on a small input."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    query = torch.ones(1, 2, 16, 64, device=device, dtype=dtype)
    works = []
    for name in BACK_ENDS:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                scaled_dot_product_attention(query, query, query, is_causal=True)
            works.append(name.removesuffix("_ATTENTION").lower())
        except (RuntimeError, AttributeError):  # not on this device, or not in this torch
            continue
    said = f"attention (SDPA) on {device}: {', '.join(works) or 'none'}"
    if works and works != ["math"]:
        return Finding(OK, "attention", said)
    return Finding(WARN, "attention", f"{said}; no fast kernel", "take a newer torch")
