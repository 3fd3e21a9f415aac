"""config.yaml: defaults, overlays, and messages that name the key and the fix."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencache.config import load
from tokencache.errors import UserError
from tokencache.files import key_of
from tokencache.references import Reference, reference

BASE = {
    "models": {"one": {"tokenizer": "./t"}, "two": {"tokenizer": "./t"}},
    "datasets": {"a": {"files": "a.jsonl"}, "b": {"files": ["b.jsonl"]}},
    "max_length": [8, 16],
}


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
        ("loss: completion needs", {"datasets": {"a": {"files": "a", "loss": "completion"}}}),
        ("loss: assistant needs", {"datasets": {"a": {"files": "a", "loss": "assistant"}}}),
        (
            "give one of: fraction",
            {"datasets": {"a": {"files": "a", "validation": {"fraction": 0.1, "files": "b"}}}},
        ),
        (
            "'fit' is not one of 'none' or 'best_fit'",
            {"datasets": {"a": {"files": "a", "packing": "fit"}}},
        ),
        ("models.one.training.lr: unknown key", {"models": {"one": {"training": {"lr": 1}}}}),
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
