"""What other trainers call the keys of config.yaml, answered with the name here.

From TRL and transformers, LLaMA-Factory, axolotl, torchtune and nanotron. A key that is known
here, only in another section, is found by `messages` itself.
"""

from __future__ import annotations

from typing import Any

TOP = "at the top level"
MODEL, DATASET, TRAINING, LORA, DOCUMENT = (
    "under models.NAME", "under datasets.NAME", "under training", "under models.NAME.lora",
    "under datasets.NAME.document",
)  # fmt: skip

# Name elsewhere: name here, where it stands, and what to write; {} is the value that was given.
_NAMES: dict[str, tuple[str, str, str]] = {}


def _add(here: str, where: str, example: str, *names: str) -> None:
    _NAMES.update(dict.fromkeys(names, (here, where, example)))


_add("max_length", TOP, "max_length: [{}]", "cutoff_len", "sequence_len", "seq_len", "seq_length",
     "sequence_length", "max_seq_length", "max_seq_len", "model_max_length", "block_size",
     "context_length", "ctx_len", "max_tokens_per_sample")  # fmt: skip
_add("cache", TOP, "cache: {}", "cache_dir", "dataset_prepared_path", "tokenized_path",
     "preprocessing_cache_dir")  # fmt: skip
_add("results", TOP, "results: {}", "output_dir", "save_dir", "checkpoint_dir")
_add("models", TOP, "models: {{NAME: {{weights: {}}}}}", "model", "model_name")
_add("weights", MODEL, "models: {{NAME: {{weights: {}}}}}", "base_model", "model_name_or_path",
     "model_path", "pretrained_model_name_or_path")  # fmt: skip
_add("tokenizer", MODEL, "models: {{NAME: {{tokenizer: {}}}}}", "tokenizer_path",
     "tokenizer_name", "tokenizer_name_or_path", "tokenizer_config")  # fmt: skip
_add("chat_template", MODEL, "chat_template: a file or Jinja text", "template",
     "chat_template_path", "chat_template_jinja", "custom_chat_template")  # fmt: skip
_add("lora", MODEL, "lora: {{r: 16, lora_alpha: 32}}", "adapter", "finetuning_type", "use_lora",
     "use_peft", "peft", "peft_config")  # fmt: skip
_add("r", LORA, "lora: {{r: {}}}", "lora_r", "lora_rank", "rank")
_add("lora_alpha", LORA, "lora: {{lora_alpha: {}}}", "alpha")
_add("lora_dropout", LORA, "lora: {{lora_dropout: {}}}", "dropout")
_add("target_modules", LORA, "lora: {{target_modules: all-linear}}", "lora_target",
     "lora_target_modules", "lora_target_linear", "lora_attn_modules")  # fmt: skip
_add("modules_to_save", LORA, "lora: {{modules_to_save: {}}}", "lora_modules_to_save",
     "additional_target")  # fmt: skip
_add("use_rslora", LORA, "lora: {{use_rslora: true}}", "lora_use_rslora", "peft_use_rslora")

_add("datasets", TOP, "datasets: {{NAME: {{files: {}}}}}", "dataset", "train_dataset", "data",
     "train_data", "test_datasets", "eval_dataset")  # fmt: skip
_add("files", DATASET, "files: {}", "path", "file", "data_files", "file_name", "dataset_path",
     "dataset_dir", "train_file", "data_dir")  # fmt: skip
_add("hub", DATASET, "hub: OWNER/NAME@COMMIT", "hf_hub_url", "dataset_name", "repo_id", "revision")
_add("name", DATASET, "name: {}", "subset", "dataset_config_name", "config_name")
_add("format", DATASET, "format: {}", "ds_type", "file_type")
_add("document", DATASET, "document: {{messages: messages}}", "type", "formatting",
     "dataset_type")  # fmt: skip
_add("text", DOCUMENT, "document: {{text: {}}}", "text_column", "dataset_text_field", "text_field",
     "field", "content_key")  # fmt: skip
_add("messages", DOCUMENT, "document: {{messages: {}}}", "field_messages", "messages_column",
     "conversations", "conversation", "chat")  # fmt: skip
_add("system", DOCUMENT, "document: {{messages: messages, system: {}}}", "field_system",
     "system_column")  # fmt: skip
_add("tools", DOCUMENT, "document: {{messages: messages, tools: {}}}", "field_tools",
     "tools_column")  # fmt: skip
_add("instruction", DOCUMENT, "document: {{instruction: {}, output: output}}",
     "field_instruction", "query")  # fmt: skip
_add("output", DOCUMENT, "document: {{instruction: instruction, output: {}}}", "field_output",
     "response", "answer")  # fmt: skip
_add("roles_to_train", DATASET, "roles_to_train: [assistant]", "roles", "train_on",
     "message_field_training", "train_on_roles")  # fmt: skip
_add("train_on_eos", DATASET, "train_on_eos: true", "train_on_eot", "efficient_eos",
     "append_eos", "train_on_end")  # fmt: skip
_add("validation", DATASET, "validation: {{fraction: {}}}", "val_size", "test_size", "eval_size",
     "val_set_size", "validation_split", "eval_split", "dev_size")  # fmt: skip
_add("packing", DATASET, "packing: best_fit", "sample_packing", "pack_sequences", "neat_packing",
     "packed", "eval_sample_packing", "multipack", "packing_strategy")  # fmt: skip
_add("loss", DATASET, "loss: completion or loss: assistant (all trains on the inputs too)",
     "train_on_inputs", "train_on_prompt", "train_on_input", "mask_prompt", "mask_inputs",
     "completion_only_loss", "assistant_only_loss", "train_on_completions_only",
     "train_on_responses_only")  # fmt: skip
_add("overflow", DATASET, "overflow: truncate", "truncation", "excess_length_strategy",
     "truncation_mode", "truncation_strategy")  # fmt: skip
_add("source and target", DOCUMENT, "document: {{source: COLUMN, target: COLUMN}}",
     "source_lang", "target_lang", "src", "tgt")  # fmt: skip

_add("per_device_train_batch_size", TRAINING, "training: {{per_device_train_batch_size: {}}}",
     "micro_batch_size", "train_batch_size", "batch_size", "train_micro_batch_size_per_gpu",
     "per_gpu_train_batch_size")  # fmt: skip
_add("per_device_eval_batch_size", TRAINING, "training: {{per_device_eval_batch_size: {}}}",
     "eval_batch_size", "val_batch_size", "per_gpu_eval_batch_size")  # fmt: skip
_add("max_tokens", TRAINING, "training: {{max_tokens: {}}}", "max_tokens_per_batch",
     "tokens_per_batch", "batch_tokens")  # fmt: skip
_add("num_train_epochs", TRAINING, "training: {{num_train_epochs: {}}}", "num_epochs", "epochs",
     "n_epochs", "max_epochs")  # fmt: skip
_add("max_steps", TRAINING, "training: {{max_steps: {}}}", "max_train_steps", "train_steps",
     "train_iters", "max_steps_per_epoch", "num_steps")  # fmt: skip
_add("gradient_accumulation_steps", TRAINING, "training: {{gradient_accumulation_steps: {}}}",
     "grad_accum", "accumulate_grad_batches", "gradient_accumulation",
     "batch_accumulation_per_replica")  # fmt: skip
_add("learning_rate", TRAINING, "training: {{learning_rate: {}}}", "lr", "max_lr")
_add("lr_scheduler_type", TRAINING, "training: {{lr_scheduler_type: {}}}", "lr_scheduler",
     "scheduler", "lr_decay_style")  # fmt: skip
_add("warmup_steps", TRAINING, "training: {{warmup_steps: {}}}", "num_warmup_steps", "warmup",
     "lr_warmup_steps", "lr_warmup_iters")  # fmt: skip
_add("warmup_ratio", TRAINING, "training: {{warmup_ratio: {}}}", "warmup_fraction")
_add("max_grad_norm", TRAINING, "training: {{max_grad_norm: {}}}", "gradient_clipping",
     "clip_grad", "grad_clip", "clip_grad_norm", "gradient_clip_val")  # fmt: skip
_add("weight_decay", TRAINING, "training: {{weight_decay: {}}}", "wd")
_add("precision", TRAINING, "training: {{precision: bfloat16}} (auto: by the hardware)", "bf16",
     "bfloat16", "pure_bf16", "mixed_precision", "torch_dtype", "dtype")  # fmt: skip
_add("precision", TRAINING, "training: {{precision: float16}} (auto: by the hardware)", "fp16",
     "float16", "half")  # fmt: skip
_add("precision", TRAINING, "training: {{precision: float32}}", "fp32", "float32")
_add("gradient_checkpointing", TRAINING, "training: {{gradient_checkpointing: true}}",
     "activation_checkpointing", "enable_activation_checkpointing", "recompute")  # fmt: skip
_add("torch_compile", TRAINING, "training: {{torch_compile: true}}", "compile")
_add("label_smoothing_factor", TRAINING, "training: {{label_smoothing_factor: {}}}",
     "label_smoothing")  # fmt: skip
_add("save_steps", TRAINING, "training: {{save_steps: {}}}", "save_interval", "checkpoint_interval",
     "checkpoint_every")  # fmt: skip
_add("eval_steps", TRAINING, "training: {{eval_steps: {}}}", "eval_interval", "val_check_interval",
     "evals_per_epoch", "eval_strategy", "evaluation_strategy")  # fmt: skip
_add("logging_steps", TRAINING, "training: {{logging_steps: {}}}", "log_interval",
     "log_every_n_steps")  # fmt: skip
_add("nodes", TRAINING, "training: {{nodes: {}}}", "num_nodes", "nnodes", "num_machines")
_add("processes_per_node", TRAINING, "training: {{processes_per_node: {}}}", "num_processes",
     "nproc_per_node", "num_gpus", "gpus", "n_gpus", "devices")  # fmt: skip
_add("mlflow", TRAINING, "training: {{mlflow: true}}", "report_to", "mlflow_tracking_uri",
     "use_mlflow", "log_with")  # fmt: skip
_add("vocab_size", "under tokenizers.NAME", "tokenizers: {{NAME: {{dataset: DATASET, "
     "vocab_size: {}}}}}", "vocabulary_size", "n_vocab")  # fmt: skip

# What is not set in config.yaml at all.
_NOT_SET = {
    "the number of cores is given on the command line: snakemake --cores 8": (
        "num_proc", "preprocessing_num_workers", "dataset_num_proc", "dataset_processes",
        "num_workers", "threads", "cores",
    ),
    "it is not needed: what is there and fresh is kept, and what is stale made anew": (
        "overwrite_cache", "overwrite_output_dir", "load_from_cache_file", "resume",
        "resume_from_checkpoint", "auto_resume_from_checkpoints", "save_strategy",
    ),
    "it is not needed: attention is chosen by the hardware, see docs/config.md, Hardware": (
        "flash_attention", "flash_attn", "attn_implementation", "use_flash_attention_2",
        "sdp_attention", "xformers_attention",
    ),
    "there is no such choice: the optimizer is AdamW": ("optim", "optimizer"),
    "there is no such choice: weights are neither quantized nor shared out over GPUs": (
        "load_in_4bit", "load_in_8bit", "quantization_bit", "quantization", "deepspeed", "fsdp",
        "fsdp_config",
    ),
    "it is not needed: rows are padded to the longest of their batch, and labels by length": (
        "padding", "pad_to_max_length", "pad_to_sequence_len", "pad_to_multiple_of",
        "ignore_pad_token_for_loss",
    ),
}  # fmt: skip
_REASONS = {name: reason for reason, names in _NOT_SET.items() for name in names}


def named_here(name: str, value: Any) -> str | None:
    """What to write in the place of a key of another trainer, where it is one."""
    if name in _REASONS:
        return _REASONS[name]
    if name not in _NAMES:
        return None
    here, where, example = _NAMES[name]
    if here == "validation" and not (isinstance(value, float) and value < 1):
        value = 0.05  # no number of rows: a part of them
    return f"here it is {here}, {where}: {example.format(_shown(value))}"


def _shown(value: Any) -> str:
    """A value as YAML has it; what is no single value stands for one."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | str) else "…"
