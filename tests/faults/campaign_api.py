"""Schemathesis against a server with tiny models: requests made from /openapi.json, right and wrong ones.

One check of schemathesis is left out, positive_data_acceptance: what is right by the document may still be refused with
400, because a document cannot say that a text is too long for a model or that a regular expression cannot be parsed.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

from lmjax.serving.app import ENDPOINTS
from tests.faults.campaign_served import serving
from tests.serving.http import ask

_EXCLUDED = "positive_data_acceptance"


def rows(folder: pathlib.Path, number: int) -> Iterator[str]:
    """Yields the rows of the table of the campaign; `number`: minutes."""
    program = shutil.which("schemathesis")
    if program is None:
        raise SystemExit("schemathesis is not installed: pip install schemathesis")
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}"
        command = [program, "run", f"{url}/openapi.json", f"--max-time={60 * number}", f"--exclude-checks={_EXCLUDED}",
                   "--continue-on-failure", "--request-timeout=60", "--phases=examples,coverage,fuzzing",
                   "--warnings=off"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        print(done.stdout[-20_000:], done.stderr[-4000:], file=sys.stderr)
        alive = ask(server, "/health")[2]["status"]
        metrics = ask(server, "/metrics")[2].decode()
    statuses: Counter[str] = Counter()
    for status, count in re.findall(r'lmjax_requests_total\{.*status="(\d+)"\} ([\d.]+)', metrics):
        statuses[status] += int(float(count))
    answers = ", ".join(f"{count} of {status}" for status, count in sorted(statuses.items()))
    cases = re.search(r"Test cases:\s+(.+)", done.stdout)
    outcome = "no check fails" if done.returncode == 0 else f"checks fail (exit {done.returncode})"
    tried = f"{cases[1] if cases else 'none'}; statuses: {answers}"
    yield (
        f"| {number} minutes of schemathesis on the {len(ENDPOINTS)} endpoints with bodies, and all others | {tried} | "
        f"{outcome}; {len(server.failures)} of status 5xx; afterwards the server is {alive} |"
    )
