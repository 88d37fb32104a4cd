"""--data: a path, or sets by name, told apart without a second flag."""

import pytest

from lmjax.commands.flags import data_fields
from lmjax.errors import FlagError


@pytest.mark.parametrize(
    ("specs", "fields"),
    [
        ([], {}),
        (["a.txt"], {"data.train": "a.txt", "data.mixture": ()}),
        (["runs/a=b.txt"], {"data.train": "runs/a=b.txt", "data.mixture": ()}),
        (["code=a.txt"], {"data.mixture": ("code=a.txt",)}),
        (["code=a.txt", "lib=stdlib"], {"data.mixture": ("code=a.txt", "lib=stdlib")}),
        (["x=runs/a=b.txt", "y=b"], {"data.mixture": ("x=runs/a=b.txt", "y=b")}),
    ],
)
def test_a_path_and_named_sets_are_told_apart(specs, fields):
    assert data_fields(specs) == fields


def test_of_several_sets_each_needs_a_name():
    with pytest.raises(FlagError, match=r"--data=b\.txt: of several sets each has a name; write --data=NAME=b\.txt"):
        data_fields(["code=a.txt", "b.txt"])
