"""A user's mistakes: one clear message, an exit status, and nothing half-written."""

import json
import os
import shutil

import pytest
from conftest import make_tokenizer
from helpers.workflow import TINY, Workflow, rows


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "w"
    make_tokenizer("bos_eos", folder / "tokenizer")
    config = {
        "models": {"one": {"tokenizer": "tokenizer"}},
        "datasets": {"qa": {"files": "data.jsonl", "document": {"text": "prompt"}}},
        "max_length": [32],
    }
    return Workflow.new(folder, config, {"data.jsonl": rows(20)})


@pytest.fixture
def workflow(good, tmp_path):
    return good.copy(tmp_path / "w")


def refuses(workflow, *said):
    """The workflow stops with this in its message, and leaves no target and no rest of one."""
    output = workflow.run(fails=True)
    for text in said:
        assert text in output, output
    assert "Traceback" not in output, output
    assert not workflow.targets()
    left = list((workflow.folder / "cache").rglob("*.tmp"))
    assert not left
    return output


def with_dataset(workflow, **keys):
    config = workflow.config
    config["datasets"]["qa"] |= keys
    workflow.configure(config)


def with_model(workflow, **keys):
    config = workflow.config
    config["models"]["one"] |= keys
    workflow.configure(config)


def test_the_good_one_is_good(workflow):
    workflow.run()
    assert len(workflow.targets()) == 1


@pytest.mark.parametrize("text", ["", "# all taken out\n", "models\n"])
def test_a_config_without_keys(workflow, text):
    (workflow.folder / "config.yaml").write_text(text)
    refuses(workflow, "tokencache: config.yaml: no keys, such as models: and datasets:")


def test_a_missing_file(workflow):
    with_dataset(workflow, files="dta.jsonl")
    output = refuses(workflow, "tokencache: datasets.qa.files.0: ", "dta.jsonl")
    assert len(output.splitlines()) < 5


def test_a_glob_that_finds_nothing(workflow):
    with_dataset(workflow, files="more/*.jsonl")
    refuses(workflow, "datasets.qa.files.0: ", "more/*.jsonl")


def test_an_unknown_suffix(workflow):
    (workflow.folder / "data.jsonl").rename(workflow.folder / "data.dat")
    with_dataset(workflow, files="data.dat")
    refuses(workflow, "datasets.qa.files.0: ", "data.dat", ".jsonl", "format:")


def test_an_empty_data_set(workflow):
    (workflow.folder / "data.jsonl").write_text("")
    refuses(workflow, "datasets.qa.files: the data set is empty: data.jsonl")


def test_a_data_set_of_blank_lines(workflow):
    (workflow.folder / "data.jsonl").write_text("\n\n \n")
    refuses(workflow, "qa", "empty")


def test_a_broken_json_line(workflow):
    with open(workflow.folder / "data.jsonl", "a") as stream:
        stream.write('{"prompt": "b\n')
    refuses(workflow, "tokencache: data.jsonl:21: broken JSON: ")


def test_a_missing_column(workflow):
    with_dataset(workflow, document={"text": "prmpt"})
    refuses(
        workflow,
        "datasets.qa.document: there is no column 'prmpt' in data.jsonl",
        "there are: prompt, completion, messages",
    )


def test_a_value_that_is_no_text(workflow):
    with open(workflow.folder / "data.jsonl", "a") as stream:
        stream.write(json.dumps({"prompt": [1]}) + "\n")
    refuses(workflow, "tokencache: data.jsonl:21: column 'prompt' is a list, not text")


def test_invalid_utf8(workflow):
    with open(workflow.folder / "data.jsonl", "ab") as stream:
        stream.write(b'{"prompt": "\xff\xfe"}\n')
    refuses(workflow, "tokencache: data.jsonl:21: invalid UTF-8", "0xff")


def test_a_tokenizer_that_is_not_there(workflow):
    with_model(workflow, tokenizer="tokenizr")
    refuses(workflow, "models.one.tokenizer: there is no file or folder 'tokenizr'")


def test_a_tokenizer_that_does_not_load(workflow):
    (workflow.folder / "tokenizer/tokenizer.json").write_text('{"model": {"type": "Nope"}}')
    refuses(workflow, "models.one.tokenizer: ")


def test_a_hub_tokenizer_without_a_commit(workflow):
    with_model(workflow, tokenizer="owner/name@main")
    refuses(workflow, "models.one.tokenizer: ", "'main' can move", "40 digits")


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, []])
def test_a_bad_max_length(workflow, value):
    workflow.configure(workflow.config | {"max_length": value})
    refuses(workflow, "config.yaml:", "max_length")


def test_a_max_length_without_room_for_text(workflow):
    workflow.configure(workflow.config | {"max_length": 2})
    refuses(workflow, "max_length: 2 leaves no room for text", "2 special tokens")


def test_an_unknown_key(workflow):
    with_dataset(workflow, overfow="drop")
    line = 1 + (workflow.folder / "config.yaml").read_text().splitlines().index("    overfow: drop")
    refuses(
        workflow,
        f"config.yaml:{line}: datasets.qa.overfow: unknown key 'overfow'; did you mean 'overflow'?",
    )


def test_several_mistakes_are_said_at_once(workflow):
    workflow.configure(workflow.config | {"max_lenght": 3, "shard_size": "big"})
    refuses(workflow, "did you mean 'max_length'?", "shard_size: ")


def test_two_data_sets_of_one_name(workflow):
    text = (workflow.folder / "config.yaml").read_text()
    workflow.configure(text.replace("max_length:", "  qa:\n    files: other.jsonl\nmax_length:"))
    refuses(workflow, "'qa' stands here a second time")


def test_broken_yaml(workflow):
    workflow.configure("models: [\n")
    output = workflow.run(fails=True)
    assert "tokencache: config.yaml:2: this is no YAML: " in output


def test_a_combination_of_unknown_names(workflow):
    workflow.configure(workflow.config | {"build": [{"model": "oen"}]})
    refuses(workflow, "build.0.model: unknown model 'oen'; did you mean 'one'?")


def test_an_engine_that_can_not_take_the_tokenizer(workflow):
    make_tokenizer("wordpiece", workflow.folder / "words")
    with_model(workflow, tokenizer="words")
    workflow.configure(workflow.config | {"engine": "gigatoken"})
    refuses(workflow, "engine: gigatoken can't be used for this tokenizer", "take engine: auto")
    workflow.configure(workflow.config | {"engine": "auto"})
    assert "engine tokenizers (gigatoken can't be used" in workflow.run()


def test_a_mask_that_leaves_nothing_to_train_on(workflow):
    path = workflow.folder / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}\n' * 5)
    make_tokenizer("byte_level", workflow.folder / "without_eos")
    with_model(workflow, tokenizer="without_eos")
    with_dataset(
        workflow, document={"prompt": "prompt", "completion": "completion"}, loss="completion"
    )
    refuses(workflow, "the loss mask leaves no token to train on")


def test_a_vocabulary_that_is_too_small_before_anything_is_tokenized(workflow):
    with_model(workflow, architecture=TINY | {"vocab_size": 50})
    refuses(workflow, "models.one.architecture.vocab_size: 50 is too small, the tokenizer has")
    assert not workflow.token_shards()


def test_a_drop_that_leaves_nothing(workflow):
    workflow.configure(workflow.config | {"max_length": 3})
    with_dataset(workflow, overflow="drop")
    refuses(workflow, "no document is left to train on", "max_length may be too small")


def test_a_chat_without_a_template(workflow):
    with_dataset(workflow, document={"messages": "messages"})
    refuses(workflow, "chat template", "models.NAME.chat_template")


def test_a_model_that_can_not_be_made(workflow):
    with_model(workflow, architecture=TINY | {"model_type": "lama"})
    output = workflow.run(fails=True)
    assert "models.one.architecture" in output and "lama" in output
    assert "Traceback" not in output
    assert not workflow.targets("results")


def test_pickled_weights(workflow):
    (workflow.folder / "weights").mkdir()
    (workflow.folder / "weights/pytorch_model.bin").write_bytes(b"pickle")
    (workflow.folder / "weights/config.json").write_text(json.dumps(TINY))
    with_model(workflow, weights="weights")
    output = workflow.run(fails=True)
    assert "models.one.weights" in output and "safetensors" in output
    assert "Traceback" not in output
    assert not workflow.targets("results")


def test_a_target_of_another_config(workflow):
    output = workflow.run("cache/one/qa/32-0123456789ab", fails=True)
    assert "is not what the present config makes" in output


def test_a_missing_config(workflow):
    (workflow.folder / "config.yaml").unlink()
    output = workflow.run(fails=True)
    assert "config.yaml" in output


def test_cache_and_results_in_one_folder(workflow):
    workflow.configure(workflow.config | {"cache": "out", "results": "./out"})
    refuses(workflow, "cache and results need a folder each")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_job_whose_folder_for_temporary_files_is_somebody_else_s(workflow, monkeypatch):
    """As a job of a cluster: it asks on its own node, where the plan's maker was not."""
    workflow.edit("rules/tokenize.smk", "tokencache tokenize", "false; tokencache tokenize")
    workflow.run("caches", fails=True)
    [plan] = (workflow.folder / ".tokencache/plans").iterdir()
    own = workflow.folder / "tmp" / f"tokencache-{os.getuid()}"
    own.mkdir(parents=True)
    os.chown(own, 4321, 4321)
    monkeypatch.setenv("TMPDIR", str(own.parent))
    monkeypatch.setenv("TOKENCACHE_PLAN", str(plan.relative_to(workflow.folder)))
    output = workflow.run(
        "--mode", "remote", "--software-deployment-method", "apptainer",
        "--target-jobs", "tokenize:batch=qa-0001", "--allowed-rules", "tokenize", fails=True,
    )  # fmt: skip
    assert f"tokencache: {own} is somebody else's; name a folder in APPTAINER_WORKDIR" in output
    assert "Traceback" not in output


def test_a_removed_token_shard_between_plan_and_pack(workflow):
    workflow.run()
    (cache,) = workflow.targets()
    shutil.rmtree(workflow.folder / "cache/one")
    shutil.rmtree(workflow.folder / "cache/tokens")
    plan = next((workflow.folder / ".tokencache/plans").iterdir())
    output = workflow.tokencache("pack", "--plan", str(plan), f"cache/{cache}", fails=True)
    assert "token shard cache/tokens/" in output and "run snakemake again" in output
