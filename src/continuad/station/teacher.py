"""Teaches one product in a process of its own, with the lowest priority: `-m continuad.station.teacher`.

A JSON object on one line of standard input says what to learn; JSON lines on standard output say how far it
is and how it ended. The process ends when its standard input does: nobody waits for it any more then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Learn what standard input says."""
    request = json.loads(sys.stdin.readline())
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is for the log

    def say(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=told, flush=True)

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(AttributeError, OSError):  # a platform without priorities
        os.nice(19)
    from continuad.errors import ContinuadError
    from continuad.inspector import Inspector

    try:
        product = Inspector.open(request["bank"]).learn(
            request["name"],
            [Path(file) for file in request["files"]],
            false_alarm_rate=request["false_alarm_rate"],
            replace_existing=request["replace"],
            progress=lambda done, total, what: say({"done": done, "total": total, "step": what}),
        )
    except ContinuadError as error:
        say({"problem": error.problem, "remedy": error.remedy})
    else:
        say({"product": product.name})


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
