"""Samples of each objective: the input for the model, and the printed form of its output."""

import pytest

TEXT = ("abcdefgh ijklmnop.", " qrstuvwx yzabcdef.")


@pytest.fixture(scope="module")
def show(make_store, make_task):
    """Returns a function from an objective and a family to its sample of TEXT, or of the pair that TEXT makes."""

    def sample(objective, architecture):
        task = make_task(objective, architecture, length=64, target_length=64)
        pairs = task.objectives[0].wants_pairs
        return task.sample(make_store([("a",), TEXT] if not pairs else [TEXT], pairs=pairs), 96)

    return sample


@pytest.mark.parametrize(
    ("objective", "architecture"),
    [("next_token", "decoder"), ("prefix_lm", "decoder"), ("prefix_lm", "encoder_decoder"), ("denoise", "decoder")],
)
def test_a_text_is_continued(show, tokenizer, objective, architecture):
    sample = show(objective, architecture)
    assert sample.shown == "a held-out prompt:\n  | abcdefgh i"
    assert tokenizer.decode(sample.ids) == "abcdefgh i"
    assert sample.answer([*tokenizer.encode("xyz"), tokenizer.eos_id]) == "continued:\n  | xyz"
    assert sample.count
    assert sample.sampled == (architecture == "decoder")


@pytest.mark.parametrize("objective", ["mlm", "mlm,nsp", "nsp,mlm"])
def test_masks_are_filled_in(show, tokenizer, objective):
    """In any order of the names, because the next-sentence objective has no sample."""
    sample = show(objective, "encoder")
    assert sample.shown == "a held-out text:\n  | abc[MASK]efgh i[MASK]klmnop[MASK] qrstu[MASK]wx yza[MASK]"
    assert sample.count == 0, "a masked LM generates no text"
    assert [i for i, t in enumerate(sample.ids) if t == tokenizer.mask_id] == [3, 10, 17, 24, 31]
    assert sample.answer(tokenizer.encode("djxvb")) == (
        "masked -> filled in: 'd' -> 'd', 'j' -> 'j', '.' -> 'x', 'v' -> 'v', 'b' -> 'b'"
    )


def test_nothing_is_shown_of_what_writes_nothing(show):
    assert show("nsp", "encoder") is None


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_spans_are_restored(show, tokenizer, ids, architecture):
    sample = show("span_corruption", architecture)
    spans = sample.answer([])
    assert spans.startswith("cut out -> restored: <0> '")
    assert spans.count("-> None") == sample.shown.count("<") == 2
    assert "<0> 'xy'" not in spans
    assert sample.answer(ids("S0", "xy", "S1", "z", "EOS")).count("-> 'xy', <1>") == 1
    assert not {tokenizer.eos_id} & set(sample.ids), "the prompt format adds EOS, so the sample must not"


def test_holes_are_written_over(show, tokenizer):
    sample = show("infilling", "encoder_decoder")
    assert sample.shown.count("[MASK]") == sample.ids.count(tokenizer.mask_id) > 1
    assert sample.answer(tokenizer.encode("abc")) == "written:\n  | abc"


def test_a_target_is_written_for_its_source(show, tokenizer):
    sample = show("seq2seq", "encoder_decoder")
    assert sample.shown == f"a held-out source:\n  | {TEXT[0]}\nits target:\n  | {TEXT[1]}"
    assert tokenizer.decode(sample.ids) == TEXT[0]
