"""A config.yaml that is odd in any way ends in one message with the place, and in no traceback."""

import datetime
import glob
import json
import os
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencache.base import plain
from tokencache.base.publish import published
from tokencache.config import explain
from tokencache.config import load as config_files
from tokencache.config.load import load
from tokencache.config.references import reference
from tokencache.errors import UserError, listed
from tokencache.sources import find, identity

BASE = """\
models: {one: {tokenizer: t}}
datasets: {qa: {files: d.jsonl}}
max_length: [32]
"""


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """What is said about a config.yaml with some text added."""
    monkeypatch.chdir(tmp_path)

    def said(text, base=BASE):
        path = tmp_path / "config.yaml"
        path.write_text(base + text, encoding="utf-8")
        with pytest.raises(UserError) as error:
            load(config_files.read([path]), [path])
        return str(error.value).replace(f"{tmp_path}/", "")

    return said


def architecture(text):
    return BASE.replace(
        "{tokenizer: t}", f"{{tokenizer: t, architecture: {{model_type: x, {text}}}}}"
    )


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "config.yaml:9: it has more than 1,000,000 values, counting what an alias"),
        (MERGES, "config.yaml:10: it has more than 1,000,000 values"),
        ("a: &a [1, *a]\n", "config.yaml:4: an alias (*name) stands within what it names"),
        (f"a: {'[' * 60}{']' * 60}\n", "config.yaml:4: its lists and mappings lie more than 50"),
        (f"a: {'[' * 9999}{']' * 9999}\n", "config.yaml: its lists and mappings lie more than 50"),
        ("? [a, b]\n: 1\n", "config.yaml:4: a key is one word or number, not a list"),
        ("? {a: b}\n: 1\n", "config.yaml:4: a key is one word or number, not a list"),
        ('cache: "\\ud800"\n', "config.yaml:4: cache: '\\ud800' holds \\ud800, which is half of"),
        ("cache: 2024-01-01\n", "config.yaml:4: cache: 2024-01-01 is a date in YAML; put it in q"),
        ("a: 2024-13-45\n", "config.yaml:4: '2024-13-45' is not a value that YAML knows"),
        (f"a: {'9' * 5000}\n", "config.yaml:4: '9999"),
        (f"shard_size: {2**70}\n", "config.yaml:4: shard_size: this number is too large"),
        (f"shard_size: {'9' * 400} TiB\n", "config.yaml:4: shard_size: '9999"),
        ("shard_size: 5 TiB\n", "config.yaml:4: shard_size: input should be less than or equal"),
        ("shard_size: 1.2.3 MB\n", "config.yaml:4: shard_size: could not convert string to float"),
        (f"cache: {'x' * 300}\n", "a name in it is too long or odd"),
        (f"{'k' * 1000}: 1\n", "config.yaml:4: kkk"),
    ],
    ids=lambda value: value[:20],
)
def test_an_odd_configuration(refused, text, message):
    start = time.process_time()
    said = refused(text)
    assert message in said and "\n" not in said and len(said) < 1000
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rope_theta: 2024-01-01", "models.one.architecture.rope_theta: 2024-01-01 is a date"),
        ("x: !!set {a, b}", "models.one.architecture.x: this is a set in YAML; write a list"),
        ("x: !!binary aGk=", "models.one.architecture.x: this is binary data"),
        ("id2label: {0: a, b: c}", "models.one.architecture.id2label: its keys are words and num"),
        ("x: {2024-01-01: a}", "models.one.architecture.x: as a key, 2024-01-01 is a date"),
        (f"x: {2**65}", "models.one.architecture.x: this number is too large"),
    ],
)
def test_an_architecture_that_is_no_json(refused, text, message):
    assert refused("", architecture(text)).startswith(f"config.yaml:1: {message}")


def test_numbers_as_keys_of_an_architecture(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(architecture("id2label: {0: a, 1: b}"))
    assert load(config_files.read([path]), [path]).models["one"].architecture["id2label"][1] == "b"


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_name_of_many_letters(refused, kind):
    base = BASE.replace("one:" if kind == "models" else "qa:", f"{'n' * 300}:")
    assert "has 300 letters; folders are called by it" in refused("", base)


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5000, "a/" * 500, "a\0b"])
def test_a_reference_that_no_file_system_takes(text):
    with pytest.raises(UserError, match=r"^models\.one\.tokenizer: there is no file or folder"):
        reference(text, "models.one.tokenizer")


def test_a_home_of_nobody():
    with pytest.raises(UserError, match=r"^key: '~nouser/x': there is no user of that name"):
        reference("~nouser/x", "key")
    assert reference("~/x", "key").path == os.path.expanduser("~/x")


def test_thousands_of_mistakes_are_a_readable_number(refused):
    said = refused("".join(f"k{n}: 1\n" for n in range(1001)))
    assert said.count("\n") == 20 and said.endswith("\n… and 981 more")
    assert listed(range(5001)).endswith("18, 19, … and 4,981 more")
    assert explain.unknown("x", range(5001), "").endswith("19, … and 4,981 more")


def test_a_value_of_many_letters(refused):
    assert len(refused(f"engine: {'x' * 10**5}\n")) < 500


@pytest.fixture
def odd_name(tmp_path):
    """A folder with a file whose name is not UTF-8."""
    folder = os.fsencode(tmp_path / "data")
    os.mkdir(folder)
    with open(folder + b"/a\xff.jsonl", "w") as stream:
        stream.write('{"text": "a"}\n')
    return os.fsdecode(folder)


def test_a_file_name_that_is_not_utf_8(odd_name):
    message = r"the name of b'.*/data/a\\xff.jsonl' is not UTF-8; rename it"
    for pattern in (odd_name, f"{odd_name}/*"):
        with pytest.raises(UserError, match=f"^datasets.qa.files.0: {message}"):
            find.find([pattern], "datasets.qa.files")
    with pytest.raises(UserError, match=message):
        identity.file_digests(glob.glob(f"{odd_name}/*"), None)


@pytest.mark.parametrize("number", [28, 122])
def test_a_disk_that_is_full_while_a_library_in_rust_writes(tmp_path, number):
    """`tokenizers` raises an Exception and nothing more."""

    def fail(text):
        with published(tmp_path / "tokenizer", folder=True):
            raise Exception(text)

    with pytest.raises(UserError, match="tokenizer: the disk is full"):
        fail(f"No space left on device (os error {number})")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Exception, match="os error 5"):
        fail("Input/output error (os error 5)")


WORDS = ("models", "datasets", "one", "tokenizer", "files", "max_length", "training", "cache",
         "architecture", "document", "validation", "size", "sizes", "build", "mlflow")  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec=None)),
    st.sampled_from(WORDS), st.dates(), st.binary(), st.just(2**70), st.just("x" * 300),
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), SCALARS)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(KEYS, below, max_size=4),
        st.sets(st.text(max_size=3), max_size=2),
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(over=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping_is_right_or_one_message(over):
    raw = yaml.safe_load(BASE) | over
    try:
        config = load(raw)
    except UserError as error:
        assert 0 < len(str(error)) < 20_000
    else:
        json.dumps(config.shown(), sort_keys=True).encode()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("ab:-[]{},&*?!<>|'\"\\u#@% \n\t0129.~"), max_size=40))
def test_any_text_is_right_or_one_message(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(BASE + text, encoding="utf-8")
    try:
        load(config_files.read([path]), [path])
    except UserError as error:
        assert str(error)


def test_what_is_plain():
    assert list(plain.problems({"a": [1, 2.5, None, True, {"b": "ü"}]})) == []
    assert [path for path, _ in plain.problems({"a": [1, datetime.date(2024, 1, 1)]})] == [("a", 1)]
