"""The names of what lies in the cache and results folders: folders, keys, and the file that says
what a folder is.
"""

from __future__ import annotations

import re

# Shared by all models; the last is where `tokencache verify` puts what is damaged.
QUARANTINE = "quarantine"
SHARED = ("sources", "tokenizers", "tokens", QUARANTINE)

KEY = re.compile(r"[0-9a-f]{32}")
TARGET = re.compile(r"[0-9]+-[0-9a-f]{12}")
PUT_AWAY = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")  # by one call of `tokencache verify`

CACHE_FILE, RUN_FILE, PROVENANCE_FILE = "cache.json", "run.json", "provenance.json"
# The records of a tokenizer, of fetched data, of whatever else is fetched, of a part of a large
# cache, and of what `tokencache verify` put away.
FACTS_FILE, FETCHED_FILE, KEY_FILE = "facts.json", "fetched.json", ".tokencache.json"
PART_FILE, QUARANTINE_FILE = "files.json", "quarantine.json"
