"""The process that starts each trial: it imports everything once, and forks.

It reads a JSON object a line and answers with one: {"do": "start"} gives a process id and
{"do": "wait"} its exit status, negative for a signal, null where it took too long.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any


def main(library: str, modules: list[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    replies, faults = os.fdopen(os.dup(1), "w"), ctypes.CDLL(library)
    os.dup2(2, 1)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _start(asked, faults) if asked["do"] == "start" else _wait(**asked)
        print(json.dumps(answer), file=replies, flush=True)


def _start(asked: dict[str, Any], faults: ctypes.CDLL) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.chdir(asked["folder"])
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for name, value in asked["settings"].items():
            module, _, attribute = name.rpartition(".")
            setattr(importlib.import_module(module), attribute, value)
        if fault := asked["fault"]:
            names = [os.fsencode(fault[key]) for key in ("counter", "watched", "other")]
            faults.trust_arm(fault["what"], ctypes.c_long(fault["at"]), *names)
        code = _call(asked["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(words: list[Any]) -> int:
    """`tokencache WORDS`, or a function that a word such as module:function names."""
    module, _, function = str(words[0]).partition(":")
    if function:
        return getattr(importlib.import_module(module), function)(*words[1:]) or 0
    from tokencache import cli

    return cli.main(words)


def _wait(do: str, child: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
