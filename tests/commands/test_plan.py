"""`lmjax plan` prints what a run needs on devices that are not here, or says why it cannot."""

import dataclasses
import importlib.util
import pathlib
import re
from collections import namedtuple

import jax
import numpy as np
import pytest

from lmjax import cli
from lmjax.axes import MESH_AXES
from lmjax.commands import plan
from lmjax.commands.plan import report
from lmjax.config import replace, resolve
from lmjax.errors import FlagError
from lmjax.parallel.chips import CHIPS, chip_of
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.roofline import Load, bound
from lmjax.runs import meshes
from lmjax.runs.ahead import too_large
from lmjax.runs.decode_ahead import compile_decode

pytestmark = [pytest.mark.usefixtures("all_devices"), pytest.mark.filterwarnings("ignore::UserWarning")]

TINY = (
    "--config.model.embed_dim=32", "--config.model.num_heads=2", "--config.model.mlp_dim=64",
    "--config.model.num_layers=1", "--config.model.vocab_size=256", "--length=32", "--batch_size=8",
    "--config.model.max_length=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    return cli.run(["plan", "--objective=mlm", "--topology=cpu:8", "--mesh=data=4,fsdp=2", *TINY])


def test_what_is_printed(planned, capsys):
    """On CPU devices there are amounts and no times; as if they were v5e chips, also times and the whole run."""
    config = planned.run.config
    lines = report(config, "cpu:8", planned, None)
    text = "\n".join(lines)
    assert "mesh         data 4 x fsdp 2" in text
    assert "least time" not in text
    assert re.search(r"products are 1\.0\d\d of the model's own", text)
    (traffic,) = re.findall(r"memory traffic is ([\d.]+) of the least", text)
    assert float(traffic) == pytest.approx(planned.load.moved / planned.least_moved, abs=1e-3)
    named = plan.sources(planned, 3)
    assert len(named) == 4
    assert "dot_general" in "\n".join(plan.sources(planned, 1000))
    assert {line.split("  ")[0] for line in lines} >= {"parameters", "optimizer", "total", "memory traffic"}
    assert any(line.startswith("all-reduce over data") for line in lines)
    # XLA on a CPU sums gradients where it could scatter them, and so sends a third more.
    (ratio,) = re.findall(r"what is sent is ([\d.]+) of the least", text)
    assert 0.9 < float(ratio) < 1.6


def test_times_follow_from_the_figures_of_the_chip(planned, monkeypatch):
    chip = CHIPS["TPU v5e"]
    monkeypatch.setattr(plan, "chip_of", lambda kind: chip)
    mesh, load = planned.run.mesh, planned.load
    least = bound(load, chip, mesh)
    assert least.products == load.flops / 197e12
    assert least.memory == load.moved / 819e9
    assert least.seconds == max(least.products, least.memory, *least.links.values())
    text = "\n".join(report(planned.run.config, "v5e:2x4", planned, 1e9))
    steps = 1e9 / planned.tokens
    assert f"budget       {steps:,.0f} steps, 1e+09 tokens" in text
    assert f"{steps * least.seconds / 3600 * 8:,.4g} device-hours" in text


def test_links_of_all_dimensions_of_a_group_count():
    """A group that extends in both dimensions of a torus sends over all links, and one in one dimension over half."""

    @dataclasses.dataclass(frozen=True)
    class Device:
        coords: tuple[int, ...]

    class Mesh:
        axis_names = ("data", "fsdp")
        devices: np.ndarray

    grid = np.empty((2, 2), object)
    for i in range(2):
        for j in range(2):
            grid[i, j] = Device((i, j, 0))
    Mesh.devices = grid
    chip = CHIPS["TPU v5e"]
    load = Load(0.0, 0.0, {("data",): 1e9, ("data", "fsdp"): 1e9})
    assert bound(load, chip, Mesh).links == {("data",): 1e9 / 100e9, ("data", "fsdp"): 1e9 / 200e9}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "--topology"),
        (("--topology=v5e",), "--topology=v5e"),
        (("--topology=v9:2x2",), "--topology=v9:2x2"),
        (("--topology=cpu:0",), "--topology=cpu:0"),
        (("--topology=cpu:9999",), "--topology=cpu:9999"),
        (("--topology=cpu:8", "--mesh=data"), "--mesh=data"),
        (("--topology=cpu:8", "--mesh=rows=8"), "'rows=8'"),
        (("--topology=cpu:8", "--mesh=fsdp=0"), "--mesh=fsdp=0"),
        (("--topology=cpu:8", "--mesh=fsdp=3"), "--mesh=fsdp=3"),
        (("--topology=cpu:8", "--mesh="), "--mesh="),
        (("--topology=cpu:8", "--tokens=inf"), "--tokens=inf"),
        (("--topology=cpu:8", "--mesh=tensor=8"), "--config.parallel.tensor=8"),
        (("--topology=cpu:8", "--mesh=auto"), "--topology=cpu:8"),
        (("--topology=cpu:8", "--parallel=pmap", "--mesh=fsdp=8"), "--parallel=pmap splits the batch alone"),
        (("--topology=cpu:8", "--parallel=pmap", "--mesh=auto"), "--mesh=auto: replicas of --parallel=pmap"),
        (("--topology=cpu:8", "--tokens=0"), "--tokens"),
    ],
)
def test_what_cannot_be_planned_names_the_flag(flags, named):
    with pytest.raises(FlagError, match=re.escape(named)):
        cli.run(["plan", *TINY, *flags])


def test_without_libtpu_the_message_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name, *rest)
    )
    with pytest.raises(FlagError, match=re.escape("pip install 'lmjax[tpu]'")):
        cli.run(["plan", *TINY, "--topology=v5e:2x2"])


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: the total memory required (20.25G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: Ran out of memory. Used 20.25G of 15.75G hbm. Exceeded hbm capacity by 4.5G.",
    ],
)
def test_a_step_that_does_not_fit_says_by_how_much(planned, said):
    error = too_large(RuntimeError(said), planned.run, planned.state)
    assert isinstance(error, FlagError)
    assert "needs 21.7 GB on each device, 4.83 GB more than the 16.9 GB" in str(error)
    assert "--config.model.remat=full" in str(error)
    assert "--mesh" in str(error)
    other = RuntimeError("INTERNAL: something else")
    assert too_large(other, planned.run, planned.state) is other


def test_the_least_that_is_sent():
    config = resolve(
        fields={
            "batch_size": 32, "task.length": 16, "model.dtype": "bfloat16", "accumulation": 2, "model.remat": "full",
            "model.embed_dim": 64, "model.num_layers": 3, "model.num_heads": 4,
        }
    )  # fmt: skip

    whole = meshes.Counts(1000)

    def sent(counts=whole, **sizes):
        found = meshes.least_sent(config, dict.fromkeys(MESH_AXES, 1) | sizes, counts)
        return {axis: number for axis, number in found.items() if number}

    assert sent() == {}
    # Two microbatches gather twice and scatter once in 2 bytes; the sums of data are those of a part, in 4 bytes then.
    assert sent(fsdp=4, data=2) == {"fsdp": 2 * 3 * 2 * 1000 * 3 / 4, "data": 2 * 4 * 250 / 2}
    # A base is gathered twice, codes as such, and a teacher once; neither has gradients.
    adapted = meshes.Counts(1000, frozen=8000, width=1, teacher=400)
    assert sent(adapted, fsdp=4, data=2) == {
        "fsdp": 2 * 3 * (3 * 2 * 250 + 2 * 1 * 2000 + 2 * 100),
        "data": 2 * 4 * 250 / 2,
    }
    assert sent(tensor=2) == {"tensor": 2 * (1 / 2) * 5 * 3 * (32 * 16) * 64 * 2}
    assert sent(sequence=4) == {"sequence": 3 * (2 + 2 + 4) * 3 * (32 * 16 / 4) * 2 * 64}


def test_gathers_over_three_sides_of_a_torus_count_twice(monkeypatch):
    config = resolve(fields={"model.vocab_size": 512, "batch_size": 64})
    mesh = namedtuple("Mesh", "shape size")({"fsdp": 64}, 64)
    config = replace(config, {"parallel.data": 1, "parallel.fsdp": 64})
    times = []
    for sides in (2, 3):
        monkeypatch.setattr(meshes, "torus_sides", lambda mesh, axes, sides=sides: sides)
        times.append(meshes._estimate(config, meshes.Counts(10**9), 1.0, mesh, CHIPS["TPU v5p"])[0])
    assert times[1] == pytest.approx(2 * times[0], rel=0.1)


def test_layouts_are_ranked_and_divide_the_run():
    """On chips of 16 GiB a small model is left whole, one of a billion is split, and 7 billion do not fit 4 of them."""
    chip, devices = CHIPS["TPU v5e"], jax.devices()[:8]
    small = resolve(fields={"model.vocab_size": 512, "batch_size": 64})
    found = meshes.candidates(small, ("vocabulary",), devices, chip)
    assert [x.seconds for x in found] == sorted(x.seconds for x in found)
    assert found[0].config.model.remat == "none"
    for each in found:
        assert make_mesh(each.config.parallel, devices).size == 8
    large = resolve(preset="llama3_2_1b", fields={"model.vocab_size": 128256, "batch_size": 64, "task.length": 2048})
    best = meshes.candidates(large, ("vocabulary",), devices, chip)[0].config
    assert best.parallel.fsdp * best.parallel.tensor > 1
    with pytest.raises(FlagError, match="--mesh=auto: even"):
        meshes.candidates(
            resolve(preset="llama2_7b", fields={"model.vocab_size": 32000, "batch_size": 64}),
            ("vocabulary",),
            devices[:4],
            chip,
        )


@pytest.mark.parametrize("objective", ["next_token", "span_corruption"])
def test_a_step_that_generates(objective, capsys):
    """Parameters are those of the training step in the compute dtype, split over the tensor axis alone."""
    cli.run(["plan", f"--objective={objective}", "--topology=cpu:4", "--mesh=tensor=2", "--decode=6", *TINY])
    sizes = dict(flag[9:].split("=") for flag in TINY if ".model" in flag)
    fields = {"parallel.tensor": 2, "task.length": 32}
    config = resolve(objective=(objective,), overrides=sizes, fields=fields)
    found = compile_decode(config, ("vocabulary",), 6, jax.devices()[:4])
    assert found.mesh.size == 2
    paired = objective == "span_corruption"
    slots = found.length + (32 if paired else 0)
    positions = (2 * found.length + (2 * 32 if paired else 0)) * 6 * 4
    assert found.memory["keys and values"] == 2 * 6 * slots * 32 * 4 // 2 + positions + 4
    assert found.load.flops > 2 * 6 * 32 * 256 / 2
    assert "generation   6 texts" in capsys.readouterr().out


def test_an_encoder_generates_no_text():
    with pytest.raises(FlagError, match="--decode=2"):
        compile_decode(resolve(objective=("mlm",)), (), 2, jax.devices()[:1])


def test_every_chip_has_figures_and_a_source():
    for name, chip in CHIPS.items():
        assert chip_of(f"{name} of some kind") == chip
        assert chip.source.startswith("https://")
        assert min(chip.flops, chip.memory, chip.bandwidth, chip.links, chip.dims) > 0
    assert chip_of("TPU v5 lite").flops == 197e12
    assert chip_of("TPU v5").flops == 459e12
    assert chip_of("cpu") is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install lmjax[tpu]")
def test_a_step_for_tpus_has_none_of_the_special_forms_for_a_cpu(capsys):
    """Nor a step for a CPU those for TPUs, as splash attention is; a program names the files that it comes from."""
    flags = [flag for flag in TINY if "length" not in flag]
    flags += ["--length=128", "--config.model.max_length=128", "--config.model.dtype=bfloat16"]
    flags += ["--config.model.positions=rope"]
    for topology, special in (("cpu:2", True), ("v5e:2x2", False)):
        text = cli.run(["plan", "--objective=next_token", f"--topology={topology}", *flags]).text
        assert "model/transformer.py" in text
        assert ("model/cpu.py" in text) == special
        assert ("model/tpu.py" in text) != special
        assert ("splash_mha" in text) != special
    assert "MFU" in capsys.readouterr().out


def test_the_benchmark_of_weak_scaling_reads_a_plan(monkeypatch):
    """On a tiny model and CPU devices in place of its own, whose compiler the tests do not have."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "experiments/bench")
    import weak_scaling

    run = weak_scaling.cli.run
    monkeypatch.setattr(weak_scaling, "FLAGS", [flag for flag in TINY if "batch_size" not in flag])
    monkeypatch.setattr(weak_scaling.cli, "run", lambda argv: run([argv[0], "--topology=cpu:8", *argv[2:]]))
    found = weak_scaling.compiled(8)
    assert 0 < found["least"] <= found["sent"] < 10 * found["least"]
    assert found["flops"] > 0
