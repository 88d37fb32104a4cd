"""Vectors of words and texts, their neighbours and pictures, probes with a control, and the similarity of layers."""

import json

import numpy as np
import pytest

from lmjax import cli, embed
from lmjax.analysis import record
from lmjax.analysis.probes import cka, layer_vectors, probe, similarities
from lmjax.analysis.vectors import analogy, cosines, neighbours, odd_one_out, project, token_vectors, word_vectors
from lmjax.errors import DataError, FlagError
from tests.inference.scoring import tiny

TEXTS = ["The old king goes", "A queen sees the river", "the tree"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns a folder with a small decoder."""
    from lmjax.interop.export import choose_family, export
    from lmjax.interop.tokenizer_export import export_tokenizer
    from tests.inference.scoring import tokenizer

    path = tmp_path_factory.mktemp("checkpoint") / "hf"
    loaded = tiny("decoder")
    extra = {f"{role}_token_id": i for role, i in tokenizer().role_ids.items()}
    export(choose_family(loaded.config, (), None, {}), loaded.config, loaded.params, path, extra=extra,
           beside=lambda new: export_tokenizer(tokenizer(), new, "gpt2", 16))  # fmt: skip
    return path


def test_words_have_the_rows_of_their_tokens():
    loaded = tiny("decoder")
    table = np.asarray(loaded.params["embedding"]["table"])
    king, houses = (loaded.tokenizer.encode(f" {word}") for word in ("king", "houses"))
    assert len(houses) > 1
    found = word_vectors(loaded, ["king", "houses"])
    np.testing.assert_allclose(found, [table[king].mean(axis=0), table[houses].mean(axis=0)], atol=1e-6)
    names, vectors = token_vectors(loaded)
    np.testing.assert_array_equal(vectors[names.index("king")], table[king[0]])


def test_neighbours_analogies_and_the_odd_one_out_by_hand():
    # Royal and plain along one axis, male and female along the other.
    words = ["king", "queen", "man", "woman", "tree"]
    x = np.array([[1.0, 1, 0], [1, -1, 0], [0.1, 1, 0], [0.1, -1, 0], [0, 0, 1]])
    np.testing.assert_allclose(cosines(x, x).diagonal(), 1)
    assert words[analogy(x, words.index("man"), words.index("king"), words.index("woman"))[0][0]] == "queen"
    assert [words[i] for i, _ in neighbours(x, x[0], 2, [0])] == ["man", "queen"]
    assert odd_one_out(x[[0, 2, 4]]) == 2


def test_a_projection_keeps_the_distances_of_a_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(9, 2)) @ np.linalg.qr(rng.normal(size=(7, 2)))[0].T + 5
    points = project(plane)
    for x in (points, plane):
        assert x.shape[0] == 9
    gaps = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (points, plane)]
    np.testing.assert_allclose(*gaps, atol=1e-9)
    with pytest.raises(FlagError, match="at least three"):
        project(plane[:2])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_umap_keeps_two_clusters_apart():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(30, 8)) * 0.1 + side for side in (np.eye(8)[0], np.eye(8)[1])])
    points = project(x, "umap")
    np.testing.assert_array_equal(points, project(x, "umap"))
    centres = points[:30].mean(axis=0), points[30:].mean(axis=0)
    assert np.linalg.norm(centres[0] - centres[1]) > 5 * points[:30].std(axis=0).max()


def test_the_command_tells_neighbours_and_writes_what_projectors_read(model, tmp_path, capsys):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join([*TEXTS, TEXTS[0], ""]) + "\n")
    given = ["embed", f"--model={model}", f"--data={data}"]
    vectors = cli.run([*given, f"--near={TEXTS[0]}", "--count=1", f"--output={tmp_path / 'out'}"])
    from lmjax import load_model

    expected = embed(load_model(model), TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    best = max((1, 2), key=lambda i: cosines(expected, expected[:1])[i, 0])
    assert capsys.readouterr().out.splitlines()[0].endswith(f"  {TEXTS[best]}")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "vectors.npy"), vectors)
    rows = (tmp_path / "out" / "vectors.tsv").read_text().splitlines()
    np.testing.assert_allclose([[float(x) for x in row.split("\t")] for row in rows], vectors, atol=1e-5)
    assert (tmp_path / "out" / "metadata.tsv").read_text().splitlines() == TEXTS
    page = (tmp_path / "out" / "picture.html").read_text()
    assert page.count("<circle") == 3
    assert "http" not in page
    with pytest.raises(FlagError, match="never overwritten"):
        cli.run([*given, f"--output={tmp_path / 'out'}"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in TEXTS))
    found = cli.run([*given[:2], f"--data={rows}", "--text_field=sentence"])
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    cli.run([*given[:2], "--of=tokens", "--near=king", "--analogy=king,queen,tree", "--count=2"])
    assert len(capsys.readouterr().out.splitlines()) == 5
    cli.run([*given[:2], "--of=words", "--odd=king,queen,tree"])
    assert capsys.readouterr().out.strip() in ("king", "queen", "tree")


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ([], FlagError, "needs --data=FILE"),
        (["--of=tokens", "--data=x"], FlagError, "leave out --data"),
        (["--of=tokens", "--analogy=a,b"], FlagError, "give three"),
        (["--odd=a,b"], FlagError, "three or more"),
        (["--of=tokens", "--analogy=king,queen,xylophone"], FlagError, "'xylophone' is not among"),
        (["--data=nothing.txt"], DataError, "nothing.txt"),
    ],
)
def test_what_does_not_fit_is_refused(flags, error, message, model):
    with pytest.raises(error, match=message):
        cli.run(["embed", f"--model={model}", *flags])


def test_layer_vectors_are_means_over_the_tokens_of_a_text():
    loaded = tiny("encoder_decoder", num_layers=2)
    found = layer_vectors(loaded, TEXTS, batch_size=2)
    assert list(found) == ["encoder/layer_0", "encoder/layer_1"]
    stream = record(loaded, TEXTS[2:], ["encoder/layer_1"])["encoder/layer_1"]
    count = len(loaded.encode(TEXTS[2]))
    np.testing.assert_allclose(found["encoder/layer_1"][2], stream[0, :count].mean(axis=0), atol=1e-5)
    last = layer_vectors(loaded, TEXTS, "last")["encoder/layer_1"]
    np.testing.assert_allclose(last[2], stream[0, count - 1], atol=1e-5)


def test_a_probe_finds_what_a_layer_holds_and_its_control_does_not():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    noise = rng.normal(size=(120, 6)).astype(np.float32)
    holds = np.concatenate([noise, (labels * 2 - 1 + 0.1 * rng.normal(size=120))[:, None]], axis=1)
    lacks, knows = probe({"lacks": noise, "holds": holds}, labels.tolist(), seeds=3)
    assert knows.accuracy.value > 0.95
    assert knows.selectivity > 0.25
    assert lacks.accuracy.value < 0.75
    with pytest.raises(FlagError, match="at least two labels"):
        probe({"lacks": noise}, [0] * 120)
    with pytest.raises(FlagError, match="there are 8 labels"):
        probe({"lacks": noise}, [0, 1] * 4)


def test_cka_is_blind_to_rotation_and_scale_and_tells_noise_apart():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + 1
    assert cka(x, turned) == pytest.approx(1)
    assert cka(x, rng.normal(size=(200, 5))) < 0.2
    # By its definition with centred Gram matrices.
    y = x[:, :3] + rng.normal(size=(200, 3))
    centre = np.eye(200) - 1 / 200
    k, m = (centre @ z @ z.T @ centre for z in (x, y))
    assert cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    both = similarities({"a": x, "b": y})
    np.testing.assert_allclose(both, both.T)
    np.testing.assert_allclose(both.diagonal(), 1)
    with pytest.raises(FlagError, match="same texts"):
        cka(x, y[:5])
