"""A folder with caches of every kind, made by the stages that jobs call, in this process."""

import contextlib
from pathlib import Path

import yaml
from conftest import make_tokenizer

from helpers.workflow import TINY, rows, write_rows
from tokencache import cli
from tokencache.config import load as config_files
from tokencache.config.load import load
from tokencache.plan.resolve import resolve
from tokencache.workflow import stages

CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
BARE = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
UNMARKED = BARE + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

CONFIG = {
    "shard_size": 4096,
    "models": {"one": {"tokenizer": "tokenizer", "architecture": TINY}},
    "datasets": {
        "plain": {"files": "data/a.jsonl", "document": {"text": "{prompt} {completion}"}},
        "packed": {
            "files": ["data/a.jsonl", "data/b.jsonl"],
            "document": {"prompt": "{prompt} ", "completion": "completion"},
            "loss": "completion",
            "overflow": "split",
            "packing": "best_fit",
            "validation": {"fraction": 0.2},
        },
        "chat": {
            "files": "data/b.jsonl",
            "document": {"messages": "messages", "chat_template": CHATML},
            "loss": "assistant",
            "validation": None,
        },
        "unmarked": {
            "files": "data/b.jsonl",
            "document": {"messages": "messages", "chat_template": UNMARKED},
            "loss": "assistant",
            "overflow": "split",
            "validation": {"files": "data/a.jsonl"},
        },
        "pairs": {
            "files": "data/a.jsonl",
            "document": {"source": "prompt", "target": "completion"},
            "overflow": "drop",
        },
    },
    "max_length": [64],
    "build": [{"model": "one", "dataset": ["plain", "packed", "chat", "unmarked", "pairs"]}],
    "training": {"max_steps": 2, "per_device_train_batch_size": 2},
}


class Experiment:
    """A folder with a config.yaml, in which `tokencache` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, folder: Path) -> "Experiment":
        make_tokenizer("bos_eos", folder / "tokenizer")
        write_rows(folder / "data/a.jsonl", rows(60))
        write_rows(folder / "data/b.jsonl", rows(40, seed=60))
        made = cls(folder)
        made.configure()
        return made

    def configure(self, **more) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | more))

    def make(self, train: bool = False) -> None:
        """What snakemake would, but for the runs, unless they are wanted."""
        files = [Path("config.yaml")]
        with contextlib.chdir(self.folder):
            plan = resolve(load(config_files.read(files), files))
            plan.write()
            missing = [folder for folder in plan.tokenizers if not Path(folder).exists()]
            for folder in missing:
                stages.materialize_tokenizer(plan, folder)
            for batch in plan.batches:
                stages.tokenize_batch(plan, batch)
            for cache in plan.caches:
                if not Path(cache).exists():
                    stages.pack_cache(plan, cache)
            for run in plan.runs if train else ():
                stages.train_run(plan, run)

    def call(self, *words: str) -> int:
        """The exit status of `tokencache WORDS`."""
        with contextlib.chdir(self.folder):
            return cli.main([*words])

    def cache(self, dataset: str, key: str = "*") -> Path:
        """The folder of the one cache of a data set."""
        [found] = self.folder.glob(f"cache/one/{dataset}/64-{key}")
        return found.relative_to(self.folder)
