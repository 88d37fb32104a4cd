"""The config.json of published models gives their published parameter counts, without allocating any."""

import pathlib

import pytest

from lmjax.interop.checkpoint import describe
from lmjax.model.language_model import abstract_params
from lmjax.model.parameters import count_parameters
from tests.interop.published import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_count(name):
    values, count = PUBLISHED[name]
    found = describe(pathlib.Path("config.json"), values)
    assert count_parameters(abstract_params(found.config, found.heads)) == count
