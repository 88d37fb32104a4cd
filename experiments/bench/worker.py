"""What a resident worker of the benchmark does: makes its step once, then runs it whenever it is asked to.

It speaks JSON lines. The first says what was built; each request `{"steps": n}` on stdin is answered by the seconds
that n steps took; an empty line ends it.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(build: Callable[[], tuple[Callable[[int], float], Callable[[], dict[str, Any]]]]) -> None:
    """Answers requests on stdin with what `build` makes: a function that runs n steps and returns the last loss.

    Args:
        build: returns that function, and one that finds out facts about what was built, which nobody waits for.
    """
    # What libraries print must not disturb the protocol.
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
