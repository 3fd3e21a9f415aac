"""What `tokencache doctor` looks at: each module yields findings, bad ones with a remedy."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
PATIENCE = 20  # seconds for a command that may never answer


@dataclass(frozen=True)
class Finding:
    """state: "ok"; "warn", slower or missing where it may be needed; or "fail", work will stop."""

    state: str
    what: str
    said: str
    remedy: str = ""


def answer(*words: str, seconds: int = PATIENCE) -> tuple[bool, str]:
    """Whether a command went well, and its last words; a command that hangs did not."""
    if shutil.which(words[0]) is None:
        return False, f"there is no {words[0]} on PATH"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, f"it did not answer within {seconds} s"
    except OSError as error:
        return False, str(error)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return False, said[-1] if said else f"it ended with status {done.returncode}"
    return True, done.stdout.strip()
