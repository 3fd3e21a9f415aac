"""Which files of a folder a model is made of, and which files are never loaded."""

import json
from pathlib import Path

import pytest

from tokencache.base.hashing import hash_file
from tokencache.config.references import Reference
from tokencache.errors import UserError
from tokencache.sources import weights


def identity(folder, trusted=False):
    wanted = Reference(path=str(folder))
    return dict(weights.identity(wanted, trusted, lambda fs: list(map(hash_file, fs)), "here"))


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


@pytest.fixture
def folder(tmp_path):
    files = {"config.json": {}, "generation_config.json": {}, "model.safetensors": "tensors"}
    return write(tmp_path / "weights", **files)


def index(*names):
    return {"metadata": {}, "weight_map": {f"tensor{n}": name for n, name in enumerate(names)}}


def test_only_what_a_model_reads_is_in_its_identity(folder):
    before = identity(folder)
    assert before.keys() == {"config.json", "generation_config.json", "model.safetensors"}
    others = {
        "timing.json": {"seconds": 3}, "provenance.json": {}, "run.json": {}, "README.md": "#",
        "optimizer.pt": "pickle", "tokenizer.json": {}, "other.safetensors": "", "loss.svg": "",
        "model.safetensors.index.json": index("other.safetensors"), "modeling_own.py": "",
        "adapter__adapter_model.safetensors": "", ".git__config": "",
    }  # fmt: skip
    write(folder, **others)
    assert identity(folder) == before
    for name in before:
        old = (folder / name).read_bytes()
        (folder / name).write_bytes(old + b" ")
        assert identity(folder) != before
        (folder / name).write_bytes(old)


def test_code_counts_where_it_is_trusted(folder):
    write(folder, **{"modeling_own.py": "a", "parts__layers.py": "b", ".git__hook.py": "c"})
    assert identity(folder, trusted=True).keys() - identity(folder) == {
        "modeling_own.py",
        "parts/layers.py",
    }


def test_shards_of_an_index_and_an_adapter_beside_them(folder):
    (folder / "model.safetensors").unlink()
    parts = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    write(folder, **dict.fromkeys(parts, "x"), **{weights.INDEX: index(*parts)})
    write(folder, **{"adapter_config.json": {}, "adapter_model.safetensors": "y"})
    found = identity(folder).keys()
    assert found > {*parts, weights.INDEX, "adapter_config.json", "adapter_model.safetensors"}
    (folder / parts[1]).unlink()
    with pytest.raises(UserError, match=r"here: .* lacks model-2-of-2\.safetensors"):
        identity(folder)


@pytest.mark.parametrize(
    "files",
    [
        # Beside other safetensors, which nothing names.
        {weights.INDEX: index("pytorch_model.bin"), "other.safetensors": "x"},
        {weights.INDEX: index("a.safetensors", "pytorch_model.bin"), "a.safetensors": "x"},
        {"adapter_config.json": {}, "adapter_model.safetensors": None, "model.safetensors": "x"},
        {"config.json": {"transformers_weights": "adapter_model.bin"}, "model.safetensors": "x"},
        {"other.safetensors": "x"},
    ],
    ids=["an index", "an index of both", "an adapter", "config.json", "beside others"],
)
def test_nothing_but_safetensors_is_loaded(files, folder):
    (folder / "model.safetensors").unlink()
    write(folder, **{name: value for name, value in files.items() if value is not None})
    write(folder, **{"pytorch_model.bin": "pickle", "adapter_model.bin": "pickle"})
    with pytest.raises(UserError, match=r"^here: .*(adapter_model|pytorch_model\.bin)"):
        identity(folder)


def test_what_can_not_be_read(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    for value, said in (("{", "can't be read"), ([], "no JSON object"), ({}, "no weight_map")):
        write(folder, **{weights.INDEX: value})
        with pytest.raises(UserError, match=f"^here: .*{said}"):
            identity(folder)
    with pytest.raises(UserError, match="there is no folder"):
        identity(Path(tmp_path, "nowhere"))
