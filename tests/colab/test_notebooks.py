"""Every notebook runs from its first cell to its last, on the CPU with LMJAX_SMOKE=1, and all have the same form."""

import ast
import os
import pathlib
import re

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

pytestmark = pytest.mark.long

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# What must be in the outputs of a notebook, besides a figure.
SHOWN = {
    "ablation_sweep": ("share a program", "100% of the steps", "Differences", "srcdoc", "learning_rate=0.01"),
    "bert_mlm_nsp": ("nsp accuracy", "heldout mlm loss", "accuracy", "McNemar", "'label'"),
    "finetune_pretrained": ("BertForPreTraining", "(lora)", "McNemar", "BertForSequenceClassification", "'label'"),
    "gpt_generation": ("next_token loss", "--- 4 beams", "--- typical 0.8", "nats"),
    "quickstart": ("next_token loss", "nsp accuracy", "span_corruption perplexity", "bits_per_byte", "probability="),
    "seq2seq_translation": ("rows", "translation_text", "rouge-score", "->", "gold:"),
    "understand": ("gap", "comprehensiveness", "random orders", "the layers say", "heads"),
}
_WARNING = re.compile(r"warning\b|^[WEF]\d{4} |Traceback", re.IGNORECASE | re.MULTILINE)


def warned(cell) -> list[str]:
    """Returns the lines of a cell's outputs on stderr that warn of something."""
    texts = (o["text"] for o in cell.get("outputs", ()) if o["output_type"] == "stream" and o["name"] == "stderr")
    return [line for text in texts for line in text.splitlines() if _WARNING.search(line)]


@EACH
def test_the_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_SMOKE", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [line for cell in code for line in warned(cell)]
    text = str([cell["outputs"] for cell in code])
    for word in ("CpuDevice", "image/png", *SHOWN[path.stem]):
        assert word in text, f"no {word} in the notebook's output"


def test_a_warning_is_seen():
    def cell(text):
        return nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", name="stderr", text=text)])

    assert warned(cell("fine\nW1128 10:00:00.000000 1 train.py:147] rows are 12% full"))
    assert warned(cell("lib.py:3: UserWarning: old\n")) == ["lib.py:3: UserWarning: old"]
    assert not warned(cell("training: 3 steps\nWord W1\n"))


@EACH
def test_the_notebook_defines_nothing_and_holds_no_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs, "clear the outputs before committing"
        assert cell.execution_count is None, "clear the outputs before committing"
        tree = ast.parse(TransformerManager().transform_cell(cell.source))
        defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
        assert not defined, "what a notebook needs belongs into lmjax"


def test_all_notebooks_begin_alike():
    """Each opens itself in Colab, installs, shows its devices, and has one field for the place of its runs."""
    notebooks = [nbformat.read(path, as_version=4).cells for path in NOTEBOOKS]
    for path, cells in zip(NOTEBOOKS, notebooks, strict=True):
        assert f"colab.research.google.com/github/lmjax/lmjax/blob/main/colab/{path.name})" in cells[0].source
        assert [cell.cell_type for cell in cells[:5]] == ["markdown", "code", "code", "markdown", "code"]
        # The extras differ.
        assert re.sub(r"lmjax\[[a-z,]+\]", "", cells[1].source) == re.sub(
            r"lmjax\[[a-z,]+\]", "", notebooks[0][1].source
        )
        assert [cells[i].source for i in (2, 3)] == [notebooks[0][i].source for i in (2, 3)]
        settings = cells[4].source.splitlines()
        # A folder of its own: notebooks may share a mounted drive.
        assert settings[1] == f'workdir = "runs/{path.stem}"  # @param {{type:"string"}}'
        # A field that nothing reads would be an empty promise.
        fields = [re.fullmatch(r"(\w+) = .+  # @param .+", line).group(1) for line in settings if "# @param" in line]
        rest = "\n".join(cell.source for cell in cells[5:] if cell.cell_type == "code")
        assert not [field for field in fields if not re.search(rf"\b{field}\b", rest)]
