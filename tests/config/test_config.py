"""config.yaml: defaults, overlays, and messages that name the key and the fix."""

import copy
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencache.base.hashing import key_of
from tokencache.config import aliases
from tokencache.config import load as config_files
from tokencache.config.dataset import Document
from tokencache.config.load import load
from tokencache.config.references import Reference, reference
from tokencache.config.schema import Config, Dataset, Lora, Model, TokenizerTraining, Training
from tokencache.errors import UserError
from tokencache.plan.run_keys import decisive

BASE = {
    "models": {"one": {"tokenizer": "./t"}, "two": {"tokenizer": "./t"}},
    "datasets": {"a": {"files": "a.jsonl"}, "b": {"files": ["b.jsonl"]}},
    "max_length": [8, 16],
}
TEXT = {"files": "a.jsonl", "document": {"text": "text"}}


def made(**keys):
    return load(copy.deepcopy(BASE) | keys)


def refused(message, **keys):
    with pytest.raises(UserError, match=message):
        made(**keys)


def test_every_combination_by_default():
    assert len(made().combinations()) == 8
    assert made(max_length=4).combinations()[0] == ("one", "a", 4)


def test_a_list_of_combinations_names_each_once():
    build = [{"model": "one"}, {"dataset": ["a"], "max_length": 8}, {"max_length": [99]}]
    found = made(build=build).combinations()
    assert len(found) == len(set(found)) == 4 + 1 + 4
    assert ("two", "b", 99) in found and ("two", "b", 16) not in found


def test_sizes_are_laid_over_the_rest():
    sizes = {
        "small": {"max_length": [4], "datasets": {"a": {"overflow": "drop"}}},
        "large": {},
    }
    config = made(size="small", sizes=sizes)
    assert config.max_length == [4]
    assert config.datasets["a"].overflow == "drop"
    assert config.datasets["a"].files == ["a.jsonl"]
    assert made(size="large", sizes=sizes).max_length == [8, 16]
    refused("unknown size 'smal'; did you mean 'small'", size="smal", sizes=sizes)


@pytest.mark.parametrize(
    ("said", "size"), [("64 MiB", 64 * 2**20), ("1.5GB", 1_500_000_000), (4096, 4096)]
)
def test_sizes_in_bytes(said, size):
    assert made(shard_size=said).shard_size == size


def test_a_model_s_training_is_laid_over_the_common_one():
    models = {"one": {"tokenizer": "t", "training": {"seed": 1}}, "two": {"tokenizer": "t"}}
    config = made(models=models, training={"seed": 2, "max_steps": 5})
    assert (config.training_of("one").seed, config.training_of("two").seed) == (1, 2)
    assert config.training_of("one").max_steps == 5


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        ("max_length.0: input should be greater than or equal to 1, not 0", {"max_length": [0]}),
        ("unknown key 'modls'; did you mean 'models'", {"modls": {}}),
        ("models: this key is missing", {"models": None}),
        ("a model can't be named 'pack'", {"models": {"pack": {"tokenizer": "t"}}}),
        ("the name 'a/b' may hold", {"datasets": {"a/b": {"files": "x"}}}),
        ("cache and results need a folder each", {"results": "cache"}),
        ("give one without", {"cache": "c{x}"}),
        ("can't be a folder", {"cache": ""}),
        ("datasets.a.files: ", {"datasets": {"a": {"files": []}}}),
        ("build", {"build": []}),
        ("true is no number", {"max_length": True}),
        ("training.seed", {"training": {"seed": -1}}),
        ("training.learning_rate", {"training": {"learning_rate": float("inf")}}),
        ("size: give a name", {"size": ["x"], "sizes": {}}),
        ("size: unknown size 'x'", {"size": "x", "sizes": None}),
        ("give files, or hub", {"datasets": {"a": {}}}),
        ("prompt and completion go together", {"datasets": {"a": {"document": {"prompt": "x"}}}}),
        ("give one of: text;", {"datasets": {"a": {"document": {"text": "x", "messages": "y"}}}}),
        ("loss: completion needs", {"datasets": {"a": TEXT | {"loss": "completion"}}}),
        ("loss: assistant needs", {"datasets": {"a": TEXT | {"loss": "assistant"}}}),
        (
            "roles_to_train needs loss: assistant",
            {"datasets": {"a": TEXT | {"roles_to_train": "user"}}},
        ),
        ("train_on_eos: false needs loss", {"datasets": {"a": TEXT | {"train_on_eos": False}}}),
        (
            "give one of: fraction",
            {"datasets": {"a": {"files": "a", "validation": {"fraction": 0.1, "files": "b"}}}},
        ),
        ("datasets.a: split does nothing with files", {"datasets": {"a": TEXT | {"split": "dev"}}}),
        (
            "split: dev} is what is trained on",
            {"datasets": {"a": {"hub": "d", "split": "dev", "validation": {"split": "dev"}}}},
        ),
        ("name does nothing with files", {"datasets": {"a": TEXT | {"name": "en"}}}),
        ("num_shards does nothing with files", {"datasets": {"a": TEXT | {"num_shards": 2}}}),
        ("format does nothing with hub", {"datasets": {"a": {"hub": "d", "format": "csv"}}}),
        (
            "'fit' is not one of 'none' or 'best_fit'",
            {"datasets": {"a": {"files": "a", "packing": "fit"}}},
        ),
        ("models.one.training.lt: unknown key", {"models": {"one": {"training": {"lt": 1}}}}),
        ("build.0.modl: unknown key 'modl'; did you mean 'model'", {"build": [{"modl": "x"}]}),
        (
            "architecture needs model_type",
            {"models": {"m": {"tokenizer": "t", "architecture": {}}}},
        ),
        (
            "tokenizers.t.dataset: unknown dataset 'c'; did you mean|tokenizers.t.dataset: unknown",
            {"tokenizers": {"t": {"dataset": "c"}}},
        ),
    ],
)
def test_messages(message, keys):
    if keys.get("models", 1) is None:
        raw = {key: value for key, value in BASE.items() if key != "models"}
        with pytest.raises(UserError, match=message):
            load(raw)
    else:
        refused(message, **keys)


def test_processes_share_the_rows_of_a_step():
    step = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "nodes": 2}
    assert made(training=step | {"processes_per_node": 3}).training.nodes == 2
    message = r"models\.one: 8 processes .* can't share the 12 rows of a step"
    refused(message, training=step | {"processes_per_node": 4})


def test_a_model_in_parts_is_neither_compiled_nor_in_float16():
    assert made(training={"fsdp": True}).training.fsdp
    message = r"training of models\.one: fsdp can't be used with torch_compile"
    refused(message, training={"fsdp": True, "torch_compile": True})
    refused(
        "fsdp can't be used with precision: float16",
        training={"fsdp": True, "precision": "float16"},
    )


def test_processes_share_the_batches_of_a_step():
    step = {"max_tokens": 64, "gradient_accumulation_steps": 4}
    assert made(training=step | {"processes_per_node": 2}).training.max_tokens == 64
    message = r"models\.one: 3 processes .* can't share the 4 batches of a step \(gradient_acc"
    refused(message, training=step | {"processes_per_node": 3})


def test_one_size_of_a_batch():
    both = {"max_tokens": 64, "per_device_train_batch_size": 2}
    refused("training: give max_tokens or per_device_train_batch_size, not both", training=both)
    refused("models.one: max_tokens: 7 is too small for a row of", training={"max_tokens": 7})
    # What a model says of its own goes over what all models have.
    rows = {"tokenizer": "t", "training": {"per_device_train_batch_size": 2}}
    tokens = {"tokenizer": "t", "training": {"max_tokens": 32}}
    config = made(models={"one": rows, "two": tokens, "three": {"tokenizer": "t"}},
                  training={"max_tokens": 64})  # fmt: skip
    found = [config.training_of(name).max_tokens for name in ("one", "two", "three")]
    assert found == [None, 32, 64]


def test_mlflow_is_a_switch_or_a_section():
    assert made(training={"mlflow": False}).training.mlflow is None
    assert made(training={"mlflow": True}).training.mlflow.experiment == "tokencache"
    refused("training.mlflow.uri: unknown key", training={"mlflow": {"uri": "x"}})
    models = {"one": {"tokenizer": "t", "training": {"mlflow": {"experiment": "e"}}}}
    config = made(models=models, training={"mlflow": True})
    assert config.training_of("one").model_dump()["mlflow"] == {
        "tracking_uri": None, "experiment": "e"
    }  # fmt: skip


OLD = {
    "num_train_epochs": 1.0, "max_steps": -1, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1, "learning_rate": 5e-05, "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "precision": "auto",
    "seed": 42,
}  # fmt: skip


def test_a_rate_below_the_end_of_its_schedule():
    refused(
        "training of models.one: learning_rate: 1e-07 is not above 1e-07",
        training={"lr_scheduler_type": "polynomial", "learning_rate": 1e-7},
    )


def test_what_decides_a_run():
    def of(packed=False, **training):
        return decisive(Training(**training).model_dump(), packed)

    assert of() == of(packed=True) == of(group_by_length=False) == OLD
    assert of(packed=True, group_by_length=True) == OLD
    assert of(torch_compile=True, dataloader_num_workers=3, mlflow=True, nodes=2) == OLD
    assert of(group_by_length=True) == OLD | {"group_by_length": True}
    assert of(tf32=False) == OLD | {"tf32": False}
    later = {"adam_beta1": 0.8, "adam_beta2": 0.98, "adam_epsilon": 1e-9,
             "label_smoothing_factor": 0.1}  # fmt: skip
    assert of(**later) == OLD | later
    assert of(**{name: Training.model_fields[name].default for name in later}) == OLD
    tokens = {name: value for name, value in OLD.items() if name != "per_device_train_batch_size"}
    tokens |= {"max_tokens": 64}
    assert of(max_tokens=64) == of(max_tokens=64, group_by_length=True) == tokens
    assert of(packed=True, max_tokens=64, group_by_length=False) == tokens
    assert of(max_tokens=64, group_by_length=False) == tokens | {"group_by_length": False}


def test_what_changes_no_weights_decides_no_run():
    """Settings that count only where others make them count."""

    def of(**training):
        return decisive(Training(**training).model_dump(), packed=False)

    # How often to look: only where the best of what was looked at is taken.
    assert of(eval_steps=7, eval_on_start=False, gradient_checkpointing=True) == of() == OLD
    best = of(load_best_model_at_end=True, eval_steps=7)
    assert best == OLD | {"load_best_model_at_end": True, "eval_steps": 7}
    assert best != of(load_best_model_at_end=True)
    # One of two says how long, and how long to warm up.
    assert of(max_steps=5) == of(max_steps=5, num_train_epochs=3)
    assert of(max_steps=0) == of(max_steps=-1) != of(num_train_epochs=3)
    assert of(warmup_steps=5) == of(warmup_steps=5, warmup_ratio=0.5) != of(warmup_ratio=0.5)
    assert of(warmup_ratio=0.5) != of()
    # This schedule warms up by no setting.
    constant = of(lr_scheduler_type="constant")
    assert constant == of(lr_scheduler_type="constant", warmup_steps=5)
    assert constant == of(lr_scheduler_type="constant", warmup_ratio=0.5)


def test_messages_name_file_and_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("models:\n  one:\n    tokenizer: t\n    weigths: x\nmax_length: 3\n")
    raw = BASE | {"models": {"one": {"tokenizer": "t", "weigths": "x"}}}
    with pytest.raises(UserError) as caught:
        load(raw, [path])
    assert f"{path}:4: models.one.weigths: unknown key 'weigths'; did you mean 'weights'?" in str(
        caught.value
    )


def test_references(tmp_path):
    commit = "0123456789" * 4
    assert reference(str(tmp_path), "k") == Reference(path=str(tmp_path))
    assert reference(f"owner/name@{commit}", "k") == Reference(hub="owner/name", revision=commit)
    for text, said in [
        ("owner/name", "a hub id needs a revision"),
        ("owner/name@main", "revision 'main' can move"),
        ("no such thing", "is no hub id"),
    ]:
        with pytest.raises(UserError, match=said):
            reference(text, "models.one.tokenizer")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def shuffled(value, draw):
    if isinstance(value, dict):
        items = [(key, shuffled(inner, draw)) for key, inner in value.items()]
        draw.shuffle(items)
        return dict(items)
    return [shuffled(inner, draw) for inner in value] if isinstance(value, list) else value


@given(JSON, st.randoms(use_true_random=False))
def test_a_key_is_of_the_value_and_not_of_the_order_of_its_keys(value, draw: random.Random):
    assert key_of(shuffled(value, draw)) == key_of(value)
    assert key_of([value]) != key_of(value)


@pytest.mark.parametrize(
    ("message", "keys"),
    [
        ("cutoff_len: here it is max_length, at the top level: max_length: [2048]",
         {"cutoff_len": 2048}),
        ("datasets.a.sequence_len: here it is max_length, at the top level: max_length: [8]",
         {"datasets": {"a": {"files": "a", "sequence_len": 8}}}),
        ("datasets.a.val_set_size: here it is validation, under datasets.NAME: "
         "validation: {fraction: 0.1}", {"datasets": {"a": {"files": "a", "val_set_size": 0.1}}}),
        ("val_size: here it is validation, under datasets.NAME: validation: {fraction: 0.05}",
         {"val_size": 500}),
        ("datasets.a.packing: here it is packing: best_fit",
         {"datasets": {"a": {"files": "a", "packing": True}}}),
        ("sample_packing: here it is packing, under datasets.NAME: packing: best_fit",
         {"sample_packing": True}),
        ("train_on_inputs: here it is loss, under datasets.NAME: loss: completion or loss: "
         "assistant", {"train_on_inputs": False}),
        ("dataset_prepared_path: here it is cache, at the top level: cache: prepared",
         {"dataset_prepared_path": "prepared"}),
        ("training.micro_batch_size: here it is per_device_train_batch_size, under training: "
         "training: {per_device_train_batch_size: 2}", {"training": {"micro_batch_size": 2}}),
        ("training.bf16: here it is precision, under training: training: {precision: bfloat16}",
         {"training": {"bf16": True}}),
        ("lora_r: here it is r, under models.NAME.lora: lora: {r: 8}", {"lora_r": 8}),
        ("learning_rate: it stands under training", {"learning_rate": 0.1}),
        ("models.one.seed: it stands under datasets.NAME.validation or under training",
         {"models": {"one": {"tokenizer": "t", "seed": 1}}}),
        ("num_proc: the number of cores is given on the command line", {"num_proc": 4}),
        ("datasets: these are named here: datasets: {NAME: {…}",
         {"datasets": [{"path": "a.jsonl"}]}),
    ],
)  # fmt: skip
def test_names_of_other_trainers_are_answered_with_those_here(message, keys):
    refused(f"^{re.escape(message)}", **keys)


def test_the_name_of_another_trainer_is_said_with_file_and_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("models: {one: {tokenizer: t}}\ndatasets: {a: {files: a}}\ncutoff_len: 64\n")
    with pytest.raises(UserError, match=re.escape(f"{file}:3: cutoff_len: here it is max_length")):
        load(config_files.read([file]), [file])


def test_what_is_suggested_for_other_names_is_a_key_here():
    places = {
        aliases.TOP: Config, aliases.MODEL: Model, aliases.DATASET: Dataset,
        aliases.TRAINING: Training, aliases.LORA: Lora, aliases.DOCUMENT: Document,
        "under tokenizers.NAME": TokenizerTraining,
    }  # fmt: skip
    for name, (here, where, example) in aliases._NAMES.items():
        fields = places[where].model_fields
        assert set(here.split(" and ")) <= fields.keys() and name not in fields
        assert example.format(1)


@pytest.mark.parametrize("base", ["", " ", "docker://x\n%setup\n touch PWNED", "a{b}c"])
def test_a_base_that_is_no_single_line(base):
    refused("containers.base: .* can't name an image", containers={"base": base})
