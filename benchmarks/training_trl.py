"""TRL's SFTTrainer with its best settings, on the documents of the experiment of training.py.

python benchmarks/training_trl.py FOLDER ATTENTION STEPS USEFUL    prints what it came to, in JSON

Best-fit packing, no padding, fused AdamW, the precision that tokencache takes on this machine,
a loader worker, no recomputed activations. TRL tokenizes and packs before its first step, which
is not timed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_arm import (
    ENOUGH_SECONDS,
    LEARNING_RATE,
    WARM_UP,
    config_of,
    make_model,
    texts_of,
    tokenizer_of,
    validate,
)


def run(folder: Path, attention: str, steps: int, useful: int) -> dict[str, Any]:
    """Train for some steps; returns what training_arm.run_arm does.

    Raises RuntimeError where a batch holds padding, whose tokens would be counted as useful.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tokencache.caches.rows import IGNORED
    from tokencache.training import hardware
    from tokencache.training.run import _quiet

    _quiet()
    cuda = torch.cuda.is_available()
    max_length = config_of(folder)["max_length"]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of(folder))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    counts = {"targets": 0, "computed": 0}
    timed = {"targets": 0, "computed": 0, "seconds": 0.0}

    class Clock(TrainerCallback):
        """Times whole steps after the warm-up."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP:
                _wait()
                self.since, self.before = time.perf_counter(), dict(counts)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step <= WARM_UP:
                return
            _wait()
            timed["seconds"] = time.perf_counter() - self.since
            timed.update({name: counts[name] - self.before[name] for name in counts})
            control.should_training_stop |= timed["seconds"] > ENOUGH_SECONDS

    def _wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
            counts["targets"] += int((inputs["labels"][:, 1:] != IGNORED).sum())
            counts["computed"] += inputs["labels"].numel()
            return super().training_step(model, inputs, *rest, **more)

    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out, max_length=max_length, packing=True, padding_free=True,
            per_device_train_batch_size=max(1, useful // max_length),
            max_steps=WARM_UP + steps, learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant", gradient_checkpointing=False, bf16=cuda,
            tf32=cuda or None, optim="adamw_torch_fused", dataloader_num_workers=int(cuda),
            logging_steps=WARM_UP + steps, save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=not cuda,
        )  # fmt: skip
        trainer = Counting(
            make_model(folder, attention), arguments, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"text": list(texts_of(folder))}),
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    return {
        "useful_tokens_per_second": timed["targets"] / timed["seconds"],
        "useful_share": timed["targets"] / timed["computed"],
        "mfu": None,
        "peak_bytes": hardware.peak_memory(),
        "useful_tokens": counts["targets"],
        "loss": validate(folder, trainer.model),
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))))
