"""What a person does with caches day after day: one module a verb of the command line.

Each has `add_words(parser)`, which says what it understands, and `run(arguments)`, which does it,
prints, and returns an exit status or None for 0. VERBS says which there are; a verb's module,
and what it needs, is only loaded when it is called.
"""

from __future__ import annotations

VERBS = {
    "list": "every cache on disk: what is in it, its size, when it was made and last used",
    "stats": "what the cache folder holds in all, and what sharing token shards saved",
    "clear": "delete caches, and token shards that no other cache needs",
    "pin": "keep a cache from gc and clear",
    "unpin": "let a pinned cache go",
    "gc": "what no config.yaml, pin or finished run refers to, and deleting that",
    "why": "which field of which key changed, and what making it will cost",
    "doctor": "what of this machine slows the work down or stops it, and the remedy",
    "env": "print settings that fit a machine, as lines to source",
    "export": "write a cache in the format of another trainer",
    "path": "print the folder of a cache, for a script",
    "trace": "say what something was made of, and what was made of it",
    "verify": "compare all that was made with its checksums, or with Hugging Face's tokenizer",
    "report": "say what is in a cache's data, before anyone trains on it",
    "status": "how far the workflow is, with the jobs that run, on other nodes too",
}
