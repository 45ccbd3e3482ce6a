"""Figures from fresh processes: what one has imported, allocated or warmed up does not touch another's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def in_fresh_process(script: Path, *words: object, threads: int = 1) -> dict[str, Any]:
    """Run a script, which prints its figures as a last line of JSON.

    It is also given `--started` and the time just before, in seconds since the epoch; libraries that ask the
    environment how many threads they may use are told `threads`.
    """
    command = [sys.executable, str(script), *map(str, words)]
    limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [*command, "--started", repr(time.time())],
        capture_output=True,
        text=True,
        env={**os.environ, **limits},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident_mib(*, peak: bool, process: int | str = "self") -> float:
    """Memory that a process has resident, now or at most (Linux); by default this one.

    `ru_maxrss` would not do: it starts with that of the process that has started this one.
    """
    field = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024
