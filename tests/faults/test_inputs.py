"""Bad input, drawn from all flags, fields and files of all commands, is one message that names it."""

import time

import pytest

from lmjax import cli
from tests.faults import campaign_inputs
from tests.faults.campaign_inputs import Campaign, cases

# Orbax leaves tasks behind in an event loop that it closes, when a file that it reads is damaged or gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::UserWarning")


@pytest.mark.long
def test_bad_input_is_one_message_that_names_it(tmp_path, monkeypatch):
    # Some commands are right to make a folder called -1 where they run.
    monkeypatch.chdir(tmp_path)
    campaign = Campaign(tmp_path)
    wrong = []
    for case in cases(campaign.places)[:60]:
        outcome, message = campaign.attempt(case)
        if outcome not in ("refused", "accepted"):
            wrong.append(f"{outcome}: {case}: {message}")
    assert not wrong, "\n".join(wrong)


def test_a_traceback_and_a_hang_are_found(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(campaign_inputs, "_SECONDS", 1)
    for broken, outcome in ((lambda _: [][0], "traceback"), (lambda _: time.sleep(30), "hang")):
        monkeypatch.setattr(cli, "run", broken)
        assert campaign_inputs._inside(["train"])[0] == outcome
