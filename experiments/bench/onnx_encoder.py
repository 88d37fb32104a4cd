"""An encoder as ONNX, by way of its Hugging Face checkpoint and torch.onnx, compared with lmjax.

    pip install onnx onnxscript onnxruntime          # beside the extra `parity`, which has torch and transformers
    python experiments/bench/onnx_encoder.py --model=PLACE --to=FOLDER

Writes the checkpoint as `lmjax convert --to=FOLDER` does, with the tokenizer, and beside it model.onnx: from input_ids
and attention_mask `[batch, length]`, both sizes symbolic, to the output of the class in config.json (hidden states,
logits). Then onnxruntime and lmjax read texts of several lengths, and the largest difference is printed; above 1e-4 it
is an error. lmjax itself imports no torch, so this is no format of `lmjax convert`.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnxruntime
import torch
import transformers

import lmjax

TEXTS = ("The old king goes.", "A queen sees the river house under an old tree", "x")
TOLERANCE = 1e-4
# Outputs of classes of transformers; lmjax calls them `logits` or those of the one other head, and `hidden`.
OUTPUTS = ("logits", "last_hidden_state")


class Two(torch.nn.Module):
    """A model of transformers as a function of two tensors."""

    def __init__(self, model: torch.nn.Module, output: str):
        """Keeps the model and the name of its output."""
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns the output `[batch, length, ...]`."""
        return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), self.output)


def write(folder: pathlib.Path) -> str:
    """Writes model.onnx into the folder of a checkpoint, and returns the name of its output."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    # Of at least two rows and tokens, because torch.export takes a size of 1 as fixed.
    ids = torch.ones(2, 9, dtype=torch.long)
    with torch.no_grad():
        output = next(each for each in OUTPUTS if each in model(input_ids=ids))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_position_embeddings)}
    names = ["input_ids", "attention_mask"]
    program = torch.onnx.export(
        Two(model, output),
        (ids, torch.ones_like(ids)),
        dynamo=True,
        dynamic_shapes=(sizes, sizes),
        input_names=names,
        output_names=[output],
    )
    program.save(folder / "model.onnx")
    return output


def difference(loaded: lmjax.LoadedModel, folder: pathlib.Path, output: str) -> float:
    """Returns the largest difference between onnxruntime's numbers and lmjax's, over single texts and a batch."""
    session, most = onnxruntime.InferenceSession(folder / "model.onnx"), 0.0
    for texts in (*([text] for text in TEXTS), list(TEXTS)):
        rows = loaded.encode(texts)
        mask = np.arange(max(map(len, rows)))[None] < np.array([[len(row)] for row in rows])
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate(rows)
        (theirs,) = session.run([output], {"input_ids": ids, "attention_mask": mask.astype(np.int64)})
        found = loaded(texts)
        answers = [found.logits] if found.logits is not None else list(found.heads.values())
        ours = found.hidden if output == "last_hidden_state" else answers[0]
        if ours.ndim == 3:
            ours, theirs = ours[:, : mask.shape[1], : theirs.shape[-1]][mask], theirs[mask]
        most = max(most, float(np.abs(ours - theirs).max()))
    return most


def main() -> None:
    """Writes the model and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a workdir or a folder of Hugging Face")
    parser.add_argument("--to", required=True, type=pathlib.Path, help="a new folder")
    options = parser.parse_args()
    loaded = lmjax.load_model(options.model, dtype="float32")
    if loaded.config.family.causal:
        sys.exit(f"--model={options.model}: is no encoder; take --format=gguf or --format=stablehlo")
    convert = [sys.executable, "-m", "lmjax.cli", "convert", f"--from={options.model}", f"--to={options.to}"]
    subprocess.run(convert, check=True)
    output = write(options.to)
    most = difference(loaded, options.to, output)
    size = sum(path.stat().st_size for path in options.to.glob("model.onnx*"))
    print(f"{options.to / 'model.onnx'}: {output}, {size / 1e6:.1f} MB; at most {most:.1e} from lmjax")
    if not most <= TOLERANCE:
        sys.exit(f"the difference is above {TOLERANCE}")


if __name__ == "__main__":
    main()
