"""Files that others wrote, changed at random: each reader accepts them or gives one clear error, in bounded time.

`python -m tests.faults.campaign --fuzz=MINUTES` tries each reader for so long.
"""

import dataclasses
import functools
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings

from lmjax.errors import UserError
from tests.faults.parsers import PARSERS, attempt, changes, made

MOST_SECONDS, MOST_BYTES = 60, 500 * 2**20
each_parser = pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.name.replace(" ", "_"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A function from a parser to its sound files, which are made once."""
    folder = tmp_path_factory.mktemp("sound")
    return functools.cache(lambda parser: made(parser, folder / parser.name))


@each_parser
def test_changed_files_are_read_or_refused(parser, sound):
    files = sound(parser)

    @settings(
        max_examples=parser.examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(changes(parser, files))
    def changed(change: tuple[pathlib.Path, bytes]):
        outcome = attempt(parser, *change)
        assert outcome.seconds < MOST_SECONDS
        assert outcome.grown < MOST_BYTES

    changed()


@each_parser
def test_the_files_are_sound_before_they_are_changed(parser, sound):
    """Else every change would be refused for another reason, and nothing behind the first check be tried."""
    for path, content in sound(parser).items():
        assert attempt(parser, path, content).accepted, path


def test_an_error_of_another_kind_fails(tmp_path):
    """Negative control: a reader that lets a KeyError out, and one whose error says nothing."""
    (tmp_path / "a").write_bytes(b"{}")

    def careless(path):
        return {}["missing"]

    def silent(path):
        raise UserError("")

    with pytest.raises(KeyError):
        attempt(dataclasses.replace(PARSERS[0], read=careless), tmp_path / "a", b"[]")
    assert (tmp_path / "a").read_bytes() == b"{}"
    with pytest.raises(AssertionError):
        attempt(dataclasses.replace(PARSERS[0], read=silent), tmp_path / "a", b"[]")
