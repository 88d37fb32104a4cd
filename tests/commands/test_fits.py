"""A run that cannot fit is an error with flag, number and remedy before anything is allocated; one that fits is not."""

import jax
import pytest

from lmjax import cli
from lmjax.commands import fits, train
from lmjax.commands.fits import check_run, sized_model
from lmjax.config import resolve
from lmjax.errors import FlagError
from lmjax.model.language_model import init_params
from lmjax.model.parameters import count_parameters
from lmjax.model.presets import PRESETS
from lmjax.parallel.memory import Memory, held
from lmjax.runs.build import build, checked_mesh, hyperparameters
from lmjax.training.state import state_maker

pytestmark = pytest.mark.usefixtures("all_devices")

GB = 10**9


@pytest.fixture
def memory(monkeypatch):
    """Returns a function that sets the memory of the devices and of the host."""

    def give(num_bytes: int, *, shared: bool = True) -> Memory:
        found = Memory(num_bytes, "this machine" if shared else "each device", shared)
        monkeypatch.setattr(fits, "device_memory", lambda: found)
        monkeypatch.setattr(fits, "host_memory", lambda: max(num_bytes, GB))
        for module in ("lmjax.inference.generate.requests", "lmjax.runs.trained"):
            monkeypatch.setattr(f"{module}.device_memory", lambda: found)
        return found

    return give


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset=llama3_8b", "--config.parallel.fsdp=8"], ("113 GB", "parameters 28 GB", "has 23 GB", "--preset")),
        (["--config.model.embed_dim=1000000000"], ("embed_dim=1000000000", "more than any machine holds")),
        (["--config.model.embed_dim=1000000"], ("embed_dim=1000000", "TB", "23 GB")),
        (["--config.model.mlp_dim=10000000000"], ("mlp_dim=10000000000", "23 GB")),
        (["--config.model.num_layers=1000000"], ("num_layers=1000000", "23 GB")),
        (["--config.model.vocab_size=1000000000"], ("vocab_size=1000000000", "23 GB")),
        (["--config.model.moe.num_experts=10000000"], ("parameters", "23 GB")),
        (["--preset=gpt2", "--config.model.max_length=1000000000"], ("parameters", "23 GB")),
        (["--config.model.embedding.types=100000000000"], ("parameters", "23 GB")),
        (["--batch_size=800000000"], ("--batch_size=800000000", "batches made ahead", "--config.data.prefetch")),
        (["--batch_size=8000000", "--config.data.prefetch=1"], ("--batch_size=8000000", "between layers")),
        (["--config.stages.until=5", "--config.stages.batch_size=800000000"], ("--batch_size=800000000",)),
        (["--config.data.prefetch=10000000"], ("--config.data.prefetch=10000000", "164 GB")),
        (["--config.data.workers=10000"], ("--config.data.workers=10000", "workers 500 GB")),
        (["--length=100000000", "--config.model.max_length=100000000"], ("--length=100000000", "--batch_size=16")),
    ],
)
def test_what_no_machine_holds_is_refused_at_once(flags, words, memory, monkeypatch, tmp_path):
    memory(23 * GB)
    monkeypatch.chdir(tmp_path)
    for step in ("claim_workdir", "build", "fit"):
        monkeypatch.setattr(train, step, lambda *args, step=step, **kwargs: pytest.fail(f"{step} came first"))
    with pytest.raises(FlagError) as error:
        cli.run(["train", *flags])
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir()), "the refused command has left files"


@pytest.mark.parametrize("fields", [{}, {"parallel.fsdp": "8"}, {"parallel.fsdp": "2", "parallel.tensor": "4"}])
@pytest.mark.parametrize("shared", [True, False])
def test_the_bound_is_what_the_shardings_put_on_each_device(fields, shared, memory):
    """The bytes of parameters, gradients, optimizer and activations are enough, and one byte less is an error."""
    config = resolve(overrides={"model.vocab_size": "64", "task.length": "8", **fields})
    mesh, model = checked_mesh(config), sized_model(config)
    make, abstract = state_maker(model, config.optimizer, hyperparameters(config), 0, mesh)
    with jax.set_mesh(mesh):
        state = make()
    kept = jax.tree.leaves((state.params, state.opt_state))
    params = jax.tree.leaves(state.params)
    if shared:
        count = lambda leaves: sum(s.data.nbytes for x in leaves for s in x.addressable_shards)  # noqa: E731
    else:
        count = lambda leaves: sum(x.addressable_shards[0].data.nbytes for x in leaves)  # noqa: E731
    rows = 16 // (mesh.shape["data"] * mesh.shape["fsdp"])
    entering = rows * 8 * config.model.embed_dim * 4 * config.model.num_layers * (8 if shared else 1)
    exact = count(kept) + count(params) + entering
    assert held(abstract.params, Memory(0, "", shared)) == count(params)
    memory(exact, shared=shared)
    check_run(config)
    memory(exact - 1, shared=shared)
    with pytest.raises(FlagError, match="needs at least"):
        check_run(config)


@pytest.mark.parametrize("name", PRESETS)
def test_the_least_parameters_are_a_close_lower_bound(name):
    config = PRESETS[name]
    published = {"model.vocab_size": str(config.vocab_size)}
    model = sized_model(resolve(preset=name, objective=_objective(config.architecture), overrides=published))
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    total = count_parameters(params)
    assert config.least_parameters <= total
    assert config.least_parameters > 0.3 * total, "the bound is too low to be useful"


@pytest.mark.parametrize("rows", [None, 512])
@pytest.mark.parametrize("trained", [True, False])
def test_the_table_that_is_printed_is_that_of_the_run(rows, trained, corpus, tmp_path, capsys):
    """By default a preset has no rows without a token; a tokenizer's file tells how many ids it has."""
    small = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 16} | ({"vocab_size": rows} if rows else {})
    fields = {f"model.{name}": str(size) for name, size in small.items()}
    tokenizer = {"tokenizer.vocab_size": "420", "tokenizer.kind": "bpe"}
    if trained:
        path = tmp_path / "t.model"
        cli.run(["tokenizer", f"--data={corpus}", "--vocab_size=420", "--kind=bpe", f"--output={path}"])
        tokenizer = {"tokenizer.path": str(path)}
    overrides = fields | tokenizer
    capsys.readouterr()
    shown = [f"--config.{path}={value}" for path, value in overrides.items()]
    cli.run(["train", "--preset=nano_decoder", f"--data={corpus}", "--print_config", *shown])
    printed = capsys.readouterr().out.rstrip().splitlines()[-1]
    run = build(
        resolve(preset="nano_decoder", overrides=overrides, fields={"data.train": str(corpus)}), tmp_path / "run"
    )
    assert run.config.model.vocab_size == (rows or 448)
    total = count_parameters(jax.eval_shape(lambda: init_params(run.model, jax.random.key(0))))
    assert printed.split() == ["total", f"{total:,}"]


def _objective(architecture: str) -> tuple[str, ...]:
    return {"encoder": ("mlm",), "decoder": ("next_token",), "encoder_decoder": ("span_corruption",)}[architecture]


def test_a_model_that_is_loaded_and_its_texts_are_counted_too(folder, memory):
    run = ["generate", f"--model={folder}", "--prompt=The king", "--max_new_tokens=4"]
    memory(GB)
    with pytest.raises(FlagError, match=r"--beams=100000000, --batch_size=8.*keys and values .*this machine has 1 GB"):
        cli.run([*run, "--beams=100000000"])
    memory(1000)
    with pytest.raises(FlagError, match=r"parameters .* and this machine has 1 kB; give --dtype=bfloat16"):
        cli.run(run)
    with pytest.raises(FlagError, match=r"--preset: needs .*parameters .*this machine has 1 kB"):
        cli.run(["generate", "--preset=nano_decoder", f"--tokenizer={folder}", "--prompt=a"])
