"""The command line itself."""

from __future__ import annotations

import subprocess
import sys


def test_numbers_of_threads_are_set_before_libraries_that_read_them_are_loaded():
    look = "import sys, tokencache.cli; print(*{'numpy', 'pyarrow', 'torch'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert (loaded.stdout, loaded.stderr) == ("\n", "")
