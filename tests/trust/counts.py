"""A line a net at the end of a run of tests: what was tried, and what was lost."""

from __future__ import annotations

from typing import Any

import pytest

PROPERTY = "trust"
_found: dict[str, list[int]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == PROPERTY:
                net, tried, lost = value
                counts = _found.setdefault(net, [0, 0])
                counts[0] += tried
                counts[1] += lost


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _found:
        return
    terminalreporter.section("trust")
    for net, (tried, lost) in sorted(_found.items()):
        terminalreporter.write_line(f"{net:<40} {tried:>7,} tried {lost:>5,} lost")
    tried, lost = (sum(counts[n] for counts in _found.values()) for n in (0, 1))
    terminalreporter.write_line(f"{'in all':<40} {tried:>7,} tried {lost:>5,} lost")
