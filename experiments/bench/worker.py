"""The loop of a benchmark's worker process: it builds its step once, then runs it on request.

The protocol is JSON lines. The first line has facts about what was built; the answer to each request `{"steps": n}` on
stdin has the seconds of n steps; an empty line ends the process.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(build: Callable[[], tuple[Callable[[int], float], Callable[[], dict[str, Any]]]]) -> None:
    """Answers requests on stdin by running steps.

    Args:
        build: returns a function that runs n steps and returns the last loss, and a function that returns facts about
            what was built, which is not timed.
    """
    # Output of libraries must not disturb the protocol.
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    start = time.perf_counter()
    run, facts = build()
    built = time.perf_counter()
    loss = run(1)
    stepped = time.perf_counter()
    answer(build_seconds=built - start, first_step_seconds=stepped - built, first_loss=loss, **facts())
    for line in sys.stdin:
        if not line.strip():
            break
        steps = json.loads(line)["steps"]
        start = time.perf_counter()
        loss = run(steps)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer(seconds=seconds, loss=loss, peak_memory_bytes=peak)
