"""Every notebook runs from its first cell to its last, on the CPU and with a handful of steps."""

import ast
import os
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
SMOKE = (
    "--steps=3", "--config.batch_size=2", "--config.task.length=64", "--config.task.target_length=32",
    "--config.model.embed_dim=16", "--config.model.num_heads=2", "--config.model.mlp_dim=16",
    "--config.model.num_layers=1", "--config.evaluation.batches=1", "--config.logging.every=1",
    "--config.tokenizer.kind=char", "--config.tokenizer.byte_fallback=false", "--config.data.held_out=0.2",
)  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_runs(path, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_FLAGS", " ".join((*SMOKE, f"--data={corpus}")))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = str([cell.get("outputs") for cell in notebook.cells])
    words = "CpuDevice", "next_token loss", "nsp accuracy", "span_corruption perplexity", "image/png", "bits_per_byte"
    for word in words:
        assert word in text, f"no {word} in the notebook's output"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebook_defines_nothing_and_holds_no_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs, "clear the outputs before committing"
        source = "\n".join(line.replace("!", "pass #", 1) for line in cell.source.splitlines())
        defined = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert not defined, "what a notebook needs belongs into lmjax"
