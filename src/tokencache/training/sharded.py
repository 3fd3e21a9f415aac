"""A run whose processes hold a part of the model each: FSDP2, which is PyTorch's fully_shard.

By fully_shard itself, which transformers.Trainer is then given: through accelerate it is for
GPUs only. Checkpoints and results are whole, as those of one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ..errors import UserError
from . import attention, checkpoints, lora, ranks
from . import model as models
from .trainer import CacheTrainer


def wanted(run: dict[str, Any]) -> bool:
    """Whether this run's model is parted; one process has nothing to part."""
    return run["training"]["fsdp"] and ranks.count() > 1


def shard(model: PreTrainedModel, precision: str) -> None:
    """Part a model that every rank has alike, in place, layer by layer.

    With GPUs, what a rank keeps is then on its GPU: the whole model never is. Raises UserError
    for float16, whose loss scaler would see another part of the gradients on each rank.
    """
    if precision == "float16":
        raise UserError(
            "training.fsdp: does not train in float16, which precision: auto takes on this GPU; "
            "set training.precision: float32, or leave fsdp out"
        )
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks.count(),))
    for layer in layers(model):
        fully_shard(layer, mesh=mesh)
    # Else what is in no layer would stay whole after a validation, and be taken for the weights.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that are computed one after the other, of which a model is made."""
    names = set(getattr(attention.base(model), "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if found:
        return found
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def whole(tensor: Any) -> Any:
    """A tensor with all its parts, on the CPU of the first rank; every rank must call this."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    full = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
    return full.cpu() if ranks.first() else None


def part(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What a rank holds of a tensor that it has whole, parted as another one is."""
    full = full.to(device=like.device, dtype=like.dtype)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """By name, what a checkpoint keeps of a model; of one with an adapter, what is trained."""
    found = dict(model.named_parameters(remove_duplicate=False))
    if hasattr(model, "peft_config"):
        return {name: tensor for name, tensor in found.items() if tensor.requires_grad}
    return found | {name: t for name, t in model.state_dict().items() if name not in found}


class ShardedTrainer(CacheTrainer):
    """CacheTrainer for a model that is parted among the ranks."""

    def __init__(self, run: dict[str, Any], model: PreTrainedModel, arguments: Any, *rest: Any):
        shard(model, "float16" if arguments.fp16 else "float32")
        self._weights: dict[str, torch.Tensor] | None = None
        self._optimizer: dict[str, Any] | None = None
        super().__init__(run, model, arguments, *rest)

    def _move_model_to_device(self, model: PreTrainedModel, device: torch.device) -> None:
        """Nothing: each part is there, the buffers too."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        prepare = self.accelerator.prepare_model

        def unwrapped(model: PreTrainedModel, **more: Any) -> PreTrainedModel:
            """Mixed precision, without DDP, which sums gradients that are summed already."""
            return prepare(model, **more | {"device_placement": False, "evaluation_mode": True})

        self.accelerator.prepare_model = unwrapped

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None:  # without clipping; the trainer's own would be a part of it
            grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
            grad_norm = torch.nn.utils.get_total_norm(grads)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        return super()._get_grad_norm(model, grad_norm)

    def run_from(self, checkpoint: checkpoints.Checkpoint | None, turn: Any) -> None:
        """Train to the end; the first rank's model is then whole, as one process has it."""
        super().run_from(checkpoint, turn)
        found = self._whole_weights()
        if ranks.first():
            parted, run = self.model, self.planned
            vocab = models.vocabulary(Path(run["tokenizer"]))
            self.model = lora.added(models.load(run, vocab), run)
            own = tensors(self.model)
            with torch.no_grad():
                for name, tensor in found.items():
                    own[name].copy_(tensor)
            name = attention.base(parted).config._attn_implementation
            attention.base(self.model).set_attn_implementation(name)
            if run["pairs"]:  # which it makes samples of
                self.model.to(self.args.device)

    # Checkpoints

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        """Tensors that several names have are one here too."""
        found = tensors(self.model)
        by_id: dict[int, torch.Tensor] = {}
        for tensor in found.values():
            if id(tensor) not in by_id:
                by_id[id(tensor)] = whole(tensor)
        return {name: by_id[id(tensor)] for name, tensor in found.items()}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.meter.paused():
            self._weights, self._optimizer = self._whole_weights(), self.optimizer.state_dict()
            states = self._optimizer["state"]
            self._optimizer["state"] = {
                number: {name: whole(value) for name, value in state.items()}
                for number, state in states.items()
            }
        super()._save_checkpoint(model, trial)
        self._weights = self._optimizer = None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, self._weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        torch.save(self._optimizer, Path(output_dir, OPTIMIZER_NAME))
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        own = tensors(self.model)
        if hasattr(self.model, "peft_config"):
            own = get_peft_model_state_dict(self.model, state_dict=own)
        with torch.no_grad():
            for file in sorted(Path(resume_from_checkpoint).glob("*.safetensors")):
                found = load_file(file)
                self._check_names(found.keys() - own.keys())
                for name, full in found.items():
                    own[name].copy_(part(full, own[name]))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, values in state["state"].items():
            like = parameters[number]
            for name, value in values.items():
                if value.shape == like.shape and name != "step":
                    values[name] = part(value, like)
        self.optimizer.load_state_dict(state)
        scheduler = torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)
