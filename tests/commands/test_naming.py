"""Names of runs: they show the fields that differ, are safe in a shell, and are different for different configs."""

import re
import shlex

import pytest

from lmjax.commands.naming import run_name
from lmjax.config import resolve


def name(overrides: dict[str, str]) -> str:
    return run_name(
        ["mlm-nsp"], resolve(objective=("mlm", "nsp")), resolve(objective=("mlm", "nsp"), overrides=overrides)
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "mlm-nsp"),
        ({"model.num_layers": "6"}, "mlm-nsp-num_layers=6"),
        ({"optimizer.learning_rate": "3e-4", "steps": "50"}, "mlm-nsp-steps=50-learning_rate=0.0003"),
        ({"evaluation.every": "5", "logging.every": "7"}, "mlm-nsp-evaluation.every=5-logging.every=7"),
        ({"data.train": "/home/me/my texts/*.txt"}, "mlm-nsp-train=.txt"),
        ({"data.train": "a b/c&d;e.txt"}, "mlm-nsp-train=c_d_e.txt"),
        ({"optimizer.clip_norm": "none", "model.scan_layers": "true"}, "mlm-nsp-scan_layers=true-clip_norm=none"),
    ],
)
def test_a_name_says_what_differs_from_the_defaults(overrides, expected):
    whole = name(overrides)
    assert re.fullmatch(re.escape(expected) + "-[0-9a-f]{8}", whole)
    assert shlex.quote(whole) == whole


def test_long_names_are_cut_and_still_differ():
    fields = {f"task.{o}.loss_weight": "0.5" for o in ("mlm", "nsp", "sop", "rtd", "denoise", "infilling", "seq2seq")}
    first, second = name(fields), name(fields | {"seed": "1", "model.num_layers": "7"})
    assert len(first) < 120
    assert first != second
    assert "-more-" in first
