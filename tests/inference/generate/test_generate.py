"""Generation: texts equal those without cache, batch, padding or stream."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from lmjax.errors import DataError
from lmjax.inference.generate import decode
from lmjax.inference.generate.generate import GenerateConfig, Generation, generate, stream
from tests.inference.scoring import tokenizer
from tests.inference.writers import check_greedy, log_probs, some_prompts, writer

pytestmark = pytest.mark.usefixtures("all_devices")

# The compiled programs, whose number is checked.
PROGRAMS = (decode.prefill, decode.extend, decode.begin, decode.run)
EOS = tokenizer().eos_id
SAMPLED = {"sampling": {"temperature": 1.0}}
# Nine prompts of mixed lengths, not sorted; all fit the least number of columns.
PROMPTS = some_prompts(5, 9, 3, 12, 1, 16, 7, 2, 10)


def config(**values) -> GenerateConfig:
    return GenerateConfig.model_validate({"max_new_tokens": 12} | values)


def only(found: list[list[Generation]]) -> list[Generation]:
    """Returns the one text of each prompt."""
    assert all(len(each) == 1 for each in found)
    return [each[0] for each in found]


def one(loaded, prompt, settings, seed=0) -> Generation:
    """Returns the text of one prompt alone."""
    return only(generate(loaded, [prompt], settings, seeds=[seed]))[0]


def long_text(loaded, prompt) -> int:
    """Returns a seed whose text is long."""
    return next(s for s in range(40, 140) if len(one(loaded, prompt, config(**SAMPLED), s).text) > 15)


def sums(loaded, prompts, found) -> list[float]:
    """Returns the sums of the log-probabilities of texts, by full passes."""
    rows = log_probs(loaded, prompts, [each.ids for each in found])
    return [sum(r[i] for r, i in zip(row, each.ids, strict=True)) for row, each in zip(rows, found, strict=True)]


@pytest.mark.parametrize("name", ["window", "prefix", "both"])
def test_greedy_is_the_likeliest_token_of_a_whole_pass_each_time(name):
    """A batch of mixed lengths, read in chunks of 16 if the family allows it; answers are longer than a window."""
    loaded, prompts, settings = writer(name), some_prompts(5, 16, 17, 40), {"max_new_tokens": 16, "prefill_chunk": 16}
    found = only(generate(loaded, prompts, config(**settings, stop_ids=(191,))))
    check_greedy(loaded, prompts, found, 16, (EOS, 191))
    # With a stop id that is in the middle of one text, and elsewhere or nowhere in the others.
    middle = found[1].ids[5]
    again = only(generate(loaded, prompts, config(**settings, stop_ids=(middle,))))
    check_greedy(loaded, prompts, again, 16, (EOS, middle))
    assert again[1].finished == "stop"
    assert again[1].ids == found[1].ids[: found[1].ids.index(middle) + 1]
    # One token more than a chunk has, with the same programs.
    short, before = some_prompts(17, 1, 2, 3, seed=1), [program._cache_size() for program in PROGRAMS]
    if name == "window":
        found = only(generate(loaded, short, config(max_new_tokens=20, prefill_chunk=16, stop_ids=(191,))))
        check_greedy(loaded, short, found, 20, (EOS, 191))
        assert [program._cache_size() for program in PROGRAMS] == before


def test_learned_positions_are_used_to_the_last():
    """Also a row that has ended: one NaN in a cache would spread to every later token."""
    loaded, prompts = writer("learned"), some_prompts(17, 4)
    found = only(generate(loaded, prompts, config(max_new_tokens=8)))
    check_greedy(loaded, prompts, found, 8, (EOS,))
    assert len(found[0].ids) + len(prompts[0]) - 1 == loaded.config.max_length


def test_other_prompts_seeds_temperatures_and_limits_compile_nothing():
    loaded = writer("rope")
    one(loaded, PROMPTS[0], config(**SAMPLED))
    before = [program._cache_size() for program in PROGRAMS]
    for seed, prompt in enumerate(PROMPTS):
        limit = 16 - 15 * seed // 8
        settings = config(sampling={"temperature": 0.5 + seed / 8}, max_new_tokens=limit)
        found = one(loaded, prompt, settings, seed)
        assert len(found.ids) == limit or found.finished == "stop"
    assert [program._cache_size() for program in PROGRAMS] == before


def test_a_text_does_not_depend_on_the_batch_and_stands_at_its_prompts_place():
    loaded, settings = writer("rope"), config(**SAMPLED)
    seeds = [*range(40, 49)]
    alone = [one(loaded, prompt, settings, seed) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    for size in (3, 8):
        found = only(generate(loaded, PROMPTS, settings.model_copy(update={"batch_size": size}), seeds=seeds))
        assert [(each.ids, each.text, each.finished) for each in found] == [
            (each.ids, each.text, each.finished) for each in alone
        ]
        np.testing.assert_allclose([each.score for each in found], [each.score for each in alone], rtol=1e-4)
    np.testing.assert_allclose([each.score for each in alone], sums(loaded, PROMPTS, alone), rtol=1e-4)
    # Different seeds give different texts; those of a config are `seed`, `seed` + 1 and so on.
    other = only(generate(loaded, PROMPTS, settings.model_copy(update={"seed": 40, "batch_size": 8})))
    assert [each.ids for each in other] == [each.ids for each in alone]
    assert one(loaded, PROMPTS[0], settings, 7).ids != alone[0].ids


def test_a_stop_string_ends_a_text_in_front_of_it():
    """The ids and the score end with the token that completes the string; the other texts continue."""
    loaded, settings, prompts = writer("rope"), config(**SAMPLED), PROMPTS[:3]
    seeds = [long_text(loaded, prompts[0]), 41, 42]
    whole = [one(loaded, prompt, settings, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    text = whole[0].text
    # Three characters that do not occur earlier, possibly from two tokens.
    stop = next(text[i : i + 3] for i in range(len(text) // 2, len(text)) if text.index(text[i : i + 3]) == i)
    assert all(stop not in each.text for each in whole[1:])
    settings = settings.model_copy(update={"stop": (stop, "never written")})
    found = only(generate(loaded, prompts, settings, seeds=seeds))
    assert [each.ids for each in found[1:]] == [each.ids for each in whole[1:]]
    cut = found[0]
    assert cut.text == whole[0].text[: whole[0].text.index(stop)]
    assert cut.finished == "stop"
    assert cut.ids == whole[0].ids[: len(cut.ids)]
    decoded = [loaded.tokenizer.decode([*prompts[0], *cut.ids[:n]]) for n in (len(cut.ids) - 1, len(cut.ids))]
    assert [stop in text for text in decoded] == [False, True]
    np.testing.assert_allclose([each.score for each in found], sums(loaded, prompts, found), rtol=1e-4)
    streamed = [*stream(loaded, prompts[0], settings.model_copy(update={"seed": seeds[0]}))]
    assert "".join(streamed[:-1]) == cut.text
    assert streamed[-1].ids == cut.ids


def test_a_stream_is_the_text_in_pieces():
    loaded = writer("rope")
    settings = config(**SAMPLED, seed=long_text(loaded, PROMPTS[3]))
    *pieces, whole = stream(loaded, PROMPTS[3], settings)
    assert sum(map(bool, pieces)) > 4
    assert "".join(pieces) == whole.text
    assert whole == one(loaded, PROMPTS[3], settings, settings.seed)
    prompt = loaded.encode("The young king")
    assert [*stream(loaded, "The young king", settings)] == [*stream(loaded, prompt, settings)]


def test_a_constrained_text_matches_and_its_stream_too():
    pytest.importorskip("llguidance")
    loaded, pattern = writer("rope"), " ?(kings?|queens? under)"
    settings = config(**SAMPLED, regex=pattern, stop=("zzz",))
    for seed in range(4):
        found = one(loaded, PROMPTS[0], settings, seed)
        assert re.fullmatch(pattern, found.text), found
        assert found.finished == "stop"
        assert np.isfinite(found.score)
        *pieces, whole = stream(loaded, PROMPTS[0], settings.model_copy(update={"seed": seed}))
        assert ("".join(pieces), whole) == (found.text, found)
    # Without a stop id, the text ends when the constraint allows nothing more; also an empty text.
    bare = dataclasses.replace(loaded, prompts=dataclasses.replace(loaded.prompts, stop=()))
    assert one(bare, PROMPTS[0], config(**SAMPLED, regex=" king")).text == " king"
    nothing = one(bare, PROMPTS[0], config(**SAMPLED, regex=""))
    assert (nothing.text, nothing.ids, nothing.score, nothing.finished) == ("", (), 0.0, "stop")
    with pytest.raises(DataError, match=r"none of the tokens .* after '' is allowed by banned=.*leave one out"):
        one(bare, PROMPTS[0], config(**SAMPLED, regex="[ki]", processors={"banned": tuple(range(1, 180))}))


def test_beams_are_scored_as_they_are():
    """Three requests in a batch padded to four; the scores are mean log-probabilities from full passes."""
    loaded, prompts = writer("rope"), PROMPTS[:3]
    found = generate(loaded, prompts, config(beams={"beams": 2, "num_return": 2}, stop_ids=(170,)))
    for prompt, texts in zip(prompts, found, strict=True):
        expected = sums(loaded, [prompt] * 2, texts)
        np.testing.assert_allclose(
            [each.score for each in texts],
            [x / len(each.ids) for x, each in zip(expected, texts, strict=True)],
            rtol=1e-4,
        )
        assert texts[0].score >= texts[1].score
        assert texts[0].ids != texts[1].ids
        for each in texts:
            assert each.finished == ("stop" if each.ids[-1] in (EOS, 170) else "length")
            # The id that ends a text is not part of it, even if it has a text of its own.
            own = each.ids[: len(each.ids) - (each.finished == "stop")]
            assert loaded.tokenizer.decode([*prompt, *own]) == loaded.tokenizer.decode(prompt) + each.text
    assert {each.finished for texts in found for each in texts} == {"stop", "length"}


def test_an_int8_cache_is_close():
    loaded, prompts = writer("rope"), PROMPTS[:1]
    found = only(generate(loaded, prompts, config(cache="int8")))
    error = abs(found[0].score - sums(loaded, prompts, found)[0])
    assert 1e-6 < error < 0.05 * abs(found[0].score)


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_that_split_a_model_write_the_same(devices):
    assert len(jax.devices()) == 8
    loaded = writer("rope", tensor=devices, num_heads=4)
    found = only(generate(loaded, PROMPTS[:1], config(max_new_tokens=8)))
    check_greedy(loaded, PROMPTS[:1], found, 8, (EOS,))
    assert len(loaded.mesh.devices.flat) == devices


def test_no_prompts_no_texts():
    assert generate(writer("rope"), []) == []


WAYS = {
    "greedy": {},
    "sampled": SAMPLED,
    "looked up": {"lookup": 1},
    "drawn and looked up": SAMPLED | {"lookup": 1},
    "beams": {"beams": {"beams": 2}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["rope", "both"])
def test_a_text_ends_where_no_id_is_allowed(name, way):
    """It must not get id 0 with a score. Two ids are allowed, each once; a prompt may contain one of them."""
    loaded, free = writer(name), (112, 113)
    forced = loaded.prompts.forced
    banned = tuple(i for i in range(loaded.config.vocab_size) if i not in free)
    # In an encoder-decoder the source does not count as a repetition.
    prompts = [[120, 121, 122], [120, 112, 122]]
    room = [2, 2 if name == "both" else 1]
    processors = {"banned": banned, "no_repeat_ngram": 1}
    found = only(generate(loaded, prompts, config(processors=processors, **WAYS[way])))
    for each, count in zip(found, room, strict=True):
        assert each.finished == "nothing_allowed"
        if way == "beams":
            # Beam search returns no texts that have not ended.
            assert (each.text, each.ids, each.score) == ("", forced, -np.inf)
            continue
        own = each.ids[len(forced) :]
        assert len(own) == count
        assert set(own) <= set(free)
        assert np.isfinite(each.score)
    nothing = only(generate(loaded, prompts, config(processors={"banned": tuple(range(192))}, **WAYS[way])))
    assert {(each.text, each.ids, each.finished) for each in nothing} == {("", forced, "nothing_allowed")}
