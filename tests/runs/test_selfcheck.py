"""Layouts of a run agree with one device, and each kind of fault is found and named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import axes, cli
from lmjax.commands import selfcheck as command
from lmjax.config import resolve
from lmjax.errors import DifferenceError, FlagError
from lmjax.model.kernels import softmax
from lmjax.parallel.collectives import Collective
from lmjax.runs import fit, selfcheck, selfcheck_texts
from lmjax.runs.selfcheck import Found, Variant, prepared
from lmjax.runs.selfcheck_program import Work, odd_work
from lmjax.training import step, update
from lmjax.training.groups import decay_mask

pytestmark = [
    pytest.mark.long, pytest.mark.usefixtures("all_devices"), pytest.mark.filterwarnings("ignore::UserWarning"),
]  # fmt: skip

SIZES = {
    "model.embed_dim": 16, "model.num_heads": 2, "model.mlp_dim": 32, "model.num_layers": 1, "model.vocab_size": 192,
    "model.max_length": 64, "model.biases": ("query", "up", "down"),
}  # fmt: skip
BY_NAME = {
    "microbatches": Variant("microbatches", {"accumulation": 2}, splits=True),
    "packing": Variant("packing", segments=True),
    "data and tensor": Variant("data and tensor", {"parallel.data": 2, "parallel.tensor": 2}),
    "pmap": Variant("pmap", {"parallel.kind": "pmap", "parallel.data": 2}, splits=True),
    "scan": Variant("scan", {"model.scan_layers": True}),
    "ring": Variant("ring", {"parallel.fsdp": 2, "parallel.sequence": 2, "parallel.tensor": 2}),
    "all-to-all": Variant("all-to-all", {"parallel.sequence": 2, "parallel.sequence_attention": "all_to_all"}),
    selfcheck.GENERATION: Variant(selfcheck.GENERATION),
}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Returns a function from the names of layouts to what is found in them, by name."""

    def checked(*names, objective="next_token"):
        monkeypatch.setattr(selfcheck, "variants", lambda *_: [BY_NAME[name] for name in names])
        config = resolve(objective=(objective,), fields=SIZES | {"task.length": 64})
        return {x.variant: x for x in selfcheck.selfcheck(prepared(config, 8), tmp_path, jax.devices())}

    return checked


def test_layouts_agree(check):
    names = BY_NAME.keys() - {"all-to-all"}
    found = check(*names)
    assert found.keys() == names
    assert all(x.same and not x.skipped for x in found.values()), found
    assert found["packing"].loss + found["microbatches"].gradient > 0


@pytest.mark.parametrize(
    ("objective", "names"), [("mlm", ("ring",)), ("seq2seq", ("all-to-all", selfcheck.GENERATION))]
)
def test_layouts_of_other_families_agree(check, objective, names):
    found = check(*names, objective=objective)
    assert len(found) == len(names)
    assert all(x.same and not x.skipped for x in found.values()), found


def test_a_wrong_rule_is_found(check, monkeypatch):
    """With batches on all devices of the data axis, the numbers stay, and the devices do the same work."""
    wrong = {how: tuple(("act_batch", None) if n == "act_batch" else (n, r) for n, r in rules)
             for how, rules in axes.SEQUENCE_RULES.items()}  # fmt: skip
    monkeypatch.setattr(fit, "SEQUENCE_RULES", wrong)
    found = check("data and tensor")["data and tensor"]
    assert not found.same
    assert "times the products of one device" in found.where


@pytest.mark.parametrize(
    ("kind", "axes", "named"),
    [
        ("all-gather", ("data",), "all-gather over data, which no rule implies"),
        ("collective-permute", ("tensor",), "collective-permute over tensor"),
        ("all-reduce", ("data",), "no collective-permute over sequence"),
        ("collective-permute", ("sequence",), "gathers nothing over fsdp"),
    ],
)
def test_what_no_rule_implies_is_named(kind, axes, named):
    config = resolve(fields={"parallel.sequence": 2, "parallel.fsdp": 2})
    sent = Collective(kind, axes, 2, 1e6, 1, "jit(step)/dot")
    assert named in odd_work(Work(1.0, ()), Work(1.0, (sent,)), config)


def test_a_text_that_depends_on_its_neighbours_is_found(check, monkeypatch):
    real = selfcheck_texts._texts

    def drawn(loaded, prompts, new, size):
        return [
            dataclasses.replace(text, score=text.score * (1 + 1e-4 * size)) for text in real(loaded, prompts, new, size)
        ]

    monkeypatch.setattr(selfcheck_texts, "_texts", drawn)
    found = check(selfcheck.GENERATION)[selfcheck.GENERATION]
    assert not found.same
    assert "prompt 1's text" in found.where


def test_a_mean_of_microbatches_is_found(check, monkeypatch):
    real = step.microbatches

    def meaned(batch, count):
        """Gives every microbatch the same weight, whatever it predicts."""
        parts = real(batch, count)
        weights = parts["weights"]
        each = weights.sum(axis=(1, 2), keepdims=True)
        return parts | {"weights": weights * weights.sum() / (count * each)}

    monkeypatch.setattr(step, "microbatches", meaned)
    found = check("microbatches")["microbatches"]
    assert not found.same
    assert "the gradient of " in found.where


def test_attention_across_texts_is_found(check, monkeypatch):
    real = softmax.scored
    monkeypatch.setattr(softmax, "scored", lambda q, k, bias, seen, how: real(q, k, bias, seen | ~seen, how))
    found = check("packing")["packing"]
    assert not found.same


def test_a_missing_sum_over_replicas_is_found(check, monkeypatch):
    real = step.over_replicas
    monkeypatch.setattr(
        step, "over_replicas", lambda tree, axis: real(tree, axis) if not isinstance(tree, tuple) else tree
    )
    found = check("pmap")["pmap"]
    assert not found.same
    assert "step" in found.where or found.loss > 1e-5


def test_a_bias_that_decays_in_one_form_is_found(check, monkeypatch):
    def by_rank(params):
        return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)

    assert update.decay_mask is decay_mask
    monkeypatch.setattr(update, "decay_mask", by_rank)
    found = check("scan")["scan"]
    assert not found.same
    assert "after step 1" in found.where
    assert found.gradient <= 1e-5


def test_random_numbers_of_a_device_are_found(check, monkeypatch):
    """As if a mask of dropout were drawn for the rows of a device, with its number."""
    real = selfcheck.loss_and_gradients

    def drawn(model, task, state, batch, hparams, accumulation, axis=None):
        sums, grads = real(model, task, state, batch, hparams, accumulation, axis)
        ways = len(jax.sharding.get_abstract_mesh().axis_sizes) and jax.sharding.get_abstract_mesh().size
        return sums, jax.tree.map(lambda g: g * (1 + 1e-3 * (ways > 1)), grads)

    monkeypatch.setattr(selfcheck, "loss_and_gradients", drawn)
    found = check("data and tensor")["data and tensor"]
    assert not found.same
    assert "the gradient of" in found.where


def test_a_name_of_no_layout_is_refused():
    with pytest.raises(FlagError, match=r"--only=tpu: .* 2 microbatches; "):
        cli.run(["selfcheck", "--objective=mlm", "--only=tpu"])


def test_rows_that_cannot_be_split_are_said(check):
    """Replaced tokens are drawn for each microbatch, so that other microbatches have other ones."""
    found = check("microbatches", objective="rtd")["microbatches"]
    assert "random numbers" in found.skipped


def test_the_command_fails_and_names_what_differs(monkeypatch, capsys):
    shown = [
        Found("a", loss=1e-7),
        Found("b", "rows hold one text each"),
        Found("c", gradient=1.0, where="the gradient of x"),
    ]
    monkeypatch.setattr(command, "selfcheck", lambda *_: iter(shown))
    with pytest.raises(DifferenceError, match=r"1 of 2 layouts .* c: the gradient of x"):
        cli.run(["selfcheck", "--objective=mlm"])
    printed = capsys.readouterr().out
    assert "DIFFERS: the gradient of x" in printed
    assert "skipped: rows hold one text each" in printed
    monkeypatch.setattr(command, "selfcheck", lambda *_: iter(shown[:2]))
    cli.run(["selfcheck", "--objective=mlm"])
    assert "1 layouts agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    "preset", ["gpt2_xl", "llama3_8b", "t5_large", "bert_large", "mixtral_8x7b", "gemma2_2b", "qwen3_8b"]
)
def test_published_models_become_small(preset):
    """Only sizes change."""
    config = resolve(
        preset=preset, objective=({"t5_large": "span_corruption", "bert_large": "mlm"}.get(preset, "next_token"),)
    )
    made = command.small(config)
    assert made.model.embed_dim == 64
    assert made.model.norm == config.model.norm
    assert (made.model.kv_heads < made.model.num_heads) == (config.model.kv_heads < config.model.num_heads)
    assert np.prod([made.model.num_layers, made.task.length]) <= 2 * 64
