"""LoRA: an adapter is trained in the place of a model's weights, by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed

from ..base.json_files import read_json, write_json
from ..config.explain import unknown
from ..errors import UserError
from .model import short

ALL_LINEAR = "all-linear"  # peft's word for all of them but the language-model head
CONFIG = "adapter_config.json"
ADAPTER = "adapter"  # the adapter's folder beside merged weights
MODEL_CARD = "README.md"  # of peft, with nothing filled in


def added(model: PreTrainedModel, run: dict[str, Any]) -> PreTrainedModel | PeftModel:
    """The model with the adapter that the run asks for, which alone is trained, or as it is.

    Raises UserError, which names the key of config.yaml, for modules that it has not.
    """
    lora = run["lora"]
    if lora is None:
        return model
    where = f"models.{run['model']}.lora"
    settings = {name: value for name, value in lora.items() if name != "merge"}
    if lora["target_modules"] == [ALL_LINEAR]:
        settings["target_modules"] = ALL_LINEAR
    else:
        _check_names(model, lora["target_modules"], f"{where}.target_modules")
    _check_names(model, lora["modules_to_save"], f"{where}.modules_to_save")
    set_seed(run["training"]["seed"])
    try:
        task = TaskType.SEQ_2_SEQ_LM if run["pairs"] else TaskType.CAUSAL_LM
        return get_peft_model(model, LoraConfig(task_type=task, **settings))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{where}: peft says: {short(error)}") from None


def _check_names(model: nn.Module, names: list[str], where: str) -> None:
    """A name stands for all modules whose path ends with it. Peft ignores one that is none."""
    modules = [name for name, _ in model.named_modules()]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            known = dict.fromkeys(module.rpartition(".")[2] for module in modules)
            known = [last for last in known if last and not last.isdigit()]
            raise UserError(f"{where}: {unknown(name, known, '', what='module')}")


def save(model: PreTrainedModel | PeftModel, folder: Path, run: dict[str, Any]) -> None:
    """Write the weights; of an adapter its own, and where the run says so those merged."""
    if run["lora"] is None:
        model.save_pretrained(folder)
        return
    merge = run["lora"]["merge"]
    own = folder / ADAPTER if merge else folder
    model.save_pretrained(own, save_embedding_layers=False)
    (own / MODEL_CARD).unlink(missing_ok=True)
    _settle(own / CONFIG, run)
    if merge:
        model.merge_and_unload().save_pretrained(folder)


def _settle(path: Path, run: dict[str, Any]) -> None:
    """The same bytes for the same run, with the name that its weights have everywhere.

    Peft keeps names in sets, whose order is another one in each process.
    """
    config = read_json(path)
    for name in ("target_modules", "modules_to_save"):
        if isinstance(config[name], list):
            config[name].sort()
    if run["weights"]["hub"]:
        config["base_model_name_or_path"] = run["weights"]["hub"]
        config["revision"] = run["weights"]["revision"]
    write_json(path, config)
