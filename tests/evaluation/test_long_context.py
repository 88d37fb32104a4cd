"""The suite of long texts: who reads the prompt scores 1, who guesses nearly 0, and depth is a place."""

import random
import re

import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.evaluation.long_context import TASKS, LongConfig, examples, long_shares, loss_by_position, shares
from tests.inference.scoring import tiny, tokenizer

TEXTS = [
    "The old king sees the river. A young queen goes under the tree. Never the house, never the river. " * 3,
    "Kings and queens go under a house",
]
CONFIG = LongConfig(lengths=(90, 200), depths=3, examples=4)


def words(text):
    return len(text.split())


@pytest.fixture(scope="module")
def found():
    return examples(CONFIG, TEXTS, words)


def oracle(prompt):
    """Answers from what the prompt says, and from nothing else."""
    if asked := re.search(r"The secret number of (\w+) is$", prompt):
        return re.search(rf"The secret number of {asked[1]} is (\d+)\.", prompt)[1]
    if asked := re.search(r"The variables that are (\d+):$", prompt):
        names = [re.search(rf"VAR (\w+) = {asked[1]}\.", prompt)[1]]
        for new, old in re.findall(r"VAR (\w+) = VAR (\w+)\.", prompt):
            names += [new] * (old == names[-1])
        return " ".join(names)
    if asked := re.search(r"The number of marks of (\w+) is$", prompt):
        return str(prompt.count(f"A mark of {asked[1]}."))
    return re.search(r"Remember this list: ([\w ]+)\.", prompt)[1]


def test_who_reads_the_prompt_is_right_everywhere(found):
    assert len(found) == len(TASKS) * 2 * 3 * 4
    for task, grid in shares(CONFIG, found, [oracle(each.prompt) for each in found]).items():
        np.testing.assert_allclose(grid, np.ones((2, 3)), err_msg=task)


def test_who_guesses_is_not(found):
    rng = random.Random(0)
    guesses = [str(rng.randint(2, 9)) if each.task == "counting" else str(rng.randint(10**5, 10**6)) for each in found]
    grids = shares(CONFIG, found, guesses)
    assert grids["counting"].mean() < 0.4, "eight numbers are equally likely"
    assert max(grid.mean() for task, grid in grids.items() if task != "counting") < 0.05


def test_texts_without_sentences_fill_a_prompt_too():
    """Code has no full stop for thousands of words; whole, it would be left out, and the prompt nearly empty."""
    code = " ".join(f"x{i} = f(x{i - 1});" for i in range(2000))
    found = examples(CONFIG, [code], words)
    for each in found:
        assert CONFIG.lengths[each.length] - 30 < words(each.prompt) <= CONFIG.lengths[each.length]
    assert len({word for each in found for word in each.prompt.split() if word[0] == "x"}) > 1000


def test_prompts_have_their_length_and_what_is_asked_its_depth(found):
    for each in found:
        length = CONFIG.lengths[each.length]
        assert length / 2 < words(each.prompt) <= length
        if each.task in ("needle", "copying"):
            said = {"needle": "The secret number of", "copying": "Remember this list:"}[each.task]
            place = words(each.prompt[: each.prompt.index(said)]) / words(each.prompt)
            assert abs(place - each.depth / 2) < 0.2
        assert each.prompt.count(each.answers[0]) >= (each.task != "counting")


def test_examples_are_the_same_at_each_call_and_differ_by_seed(found):
    assert examples(CONFIG, TEXTS, words) == found
    other = examples(CONFIG.model_copy(update={"seed": 1}), TEXTS, words)
    assert sum(a.prompt == b.prompt for a, b in zip(found, other, strict=True)) == 0


def test_what_has_no_room_is_refused():
    with pytest.raises(FlagError, match="--lengths=9: has no room"):
        examples(LongConfig(lengths=(9,)), TEXTS, words)
    with pytest.raises(FlagError, match="has no text"):
        examples(CONFIG, ["  "], words)


def test_a_model_writes_answers_and_an_untrained_one_knows_none():
    model = tiny("decoder", "rope", max_length=512)
    config = LongConfig(lengths=(300,), depths=2, examples=1)
    assert long_shares(model, TEXTS, config) == dict.fromkeys(TASKS, 0.0)


def test_models_that_cannot():
    with pytest.raises(FlagError, match=r"--lengths=512: with .* new tokens is above the model's rows of 16"):
        long_shares(tiny("decoder"), TEXTS)
    with pytest.raises(FlagError, match="is for decoders"):
        long_shares(tiny("encoder_decoder"), TEXTS)


def test_loss_by_position_is_the_likelihood_of_the_row():
    model = tiny("decoder", "rope", max_length=512)
    by_position = loss_by_position(model, TEXTS, 17)
    assert list(by_position) == [f"{2 * i + 1}-{2 * i + 2}" for i in range(8)]
    ids = [i for text in TEXTS for i in tokenizer().encode(text)]
    before = list(model.prompts.before)
    step = 17 - len(before)
    rows = [[*before, *ids[start : start + step]] for start in range(0, len(ids) - step + 1, step)][:32]
    logits = model(rows).logits[:, :16].astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(chances, np.array(rows)[:, 1:, None], axis=-1)[..., 0])
    expected = nats.reshape(len(rows), 8, 2).mean((0, 2))
    np.testing.assert_allclose(list(by_position.values()), expected, rtol=1e-4)
    assert loss_by_position(model, ["The king"], 400) == {}
