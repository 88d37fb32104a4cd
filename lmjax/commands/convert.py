"""`lmjax convert`: reads and writes Hugging Face checkpoints, and writes other formats."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
import time
from typing import Any

import jax
from absl import flags

from lmjax.commands.convert_formats import FORMATS, check_format, check_whole
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.interop.export import check_free, choose_family, export, exported_heads
from lmjax.interop.generation import GENERATION
from lmjax.interop.peft import Adapter, write_adapter
from lmjax.interop.sentence import write_sentence
from lmjax.interop.tasks import in_own_units, task_fields
from lmjax.interop.tokenizer_export import export_tokenizer
from lmjax.model.heads import HEADS
from lmjax.model.padding import padded
from lmjax.model.parameters import count_parameters, flat
from lmjax.objectives.embedding import Embedding
from lmjax.paths import new_folder, shell_quoted
from lmjax.phases import phase
from lmjax.runs.made import write_model
from lmjax.runs.places import local_folder
from lmjax.runs.pretrained import Pretrained, open_pretrained, storage_mesh
from lmjax.runs.workdir import is_unused
from lmjax.training.metrics import peak_host_memory


def main(values: flags.FlagValues) -> pathlib.Path:
    """Returns the new workdir or folder."""
    if (form := values["format"].value) is not None:
        check_format(values)
    elif values["dtype"].value in ("q8_0", "q4_0"):
        raise FlagError(f"--dtype={values['dtype'].value}: is for --format=gguf; choose float32, bfloat16 or float16")
    given = {name: values[name].value for name in ("from", "workdir", "to") if values[name].value}
    if len(given) != 2:
        raise FlagError(
            "lmjax convert needs two of --from=FOLDER, --workdir=DIR and --to=FOLDER: "
            f"the source and the target; {', '.join(f'--{name}' for name in given) or 'none'} given"
        )
    start = time.perf_counter()
    if "from" not in given:
        local_folder(given["workdir"])
    source = open_pretrained(given.get("from") or given["workdir"], values["step"].value, values["accept_fields"].value)
    # Other formats get numbers for codes, and none has rows without a token.
    source = dataclasses.replace(source, config=padded(source.config.with_fields({"quantization": {}}), 1))
    target = pathlib.Path(given["to"] if "to" in given else given["workdir"])
    if values["merge"].value and (source.adapted is None or "to" not in given):
        raise FlagError(f"--merge: is for --to and a run with an adapter, and {source.folder} has none; leave it out")
    write = _write_out if source.adapted is None or values["merge"].value else _write_adapter
    if form:
        check_whole(source, values)
        write = FORMATS[form].write
    with phase(f"writing {target}"):
        lines = write(source, target, values) if "to" in given else _bring_in(source, target)
    lines["time"] = f"{time.perf_counter() - start:.1f} s"
    lines["host memory"] = f"{peak_host_memory() / 2**30:.2f} GiB at its peak"
    if source.largest_file:
        lines["largest file"] = f"{source.largest_file / 2**30:.2f} GiB, read tensor by tensor"
    next_command = lines.pop("next")
    print(
        "\n".join([f"{target}", *(f"  {name:<14}{text}" for name, text in lines.items()), "", f"next: {next_command}"])
    )
    return target


def _special_ids(tokenizer: Vocabulary) -> dict[str, int]:
    """Returns the fields of a config.json that name the special tokens of a tokenizer."""
    return {f"{role}_token_id": i for role, i in tokenizer.role_ids.items()}


def _stop(source: Pretrained, tokenizer: Vocabulary) -> dict[str, list[int]]:
    """Returns the field of a config.json with the ids that end a text, if they are not the end-of-text token alone."""
    stop = sorted(source.prompts(tokenizer).stop) if source.config.family.causal else []
    return {"eos_token_id": stop} if stop not in ([], [tokenizer.role_ids.get("eos")]) else {}


def _described(source: Pretrained, params: Any) -> dict[str, str]:
    """Returns the lines of the report that describe a model."""
    config = source.config
    heads = f", with {', '.join(source.heads)}" if source.heads else ""
    dtypes = sorted({str(x.dtype) for x in jax.tree.leaves(params)})
    ignored = {"not read": ", ".join(source.ignored[:4]) + (" ..." if source.ignored[4:] else "")}
    return (ignored if source.ignored else {}) | {
        "model": f"{config.family.label}{heads}",
        "parameters": f"{count_parameters(params):,}, {', '.join(dtypes)}",
    }


def _bring_in(source: Pretrained, workdir: pathlib.Path) -> dict[str, str]:
    """Makes a workdir from a Hugging Face checkpoint, and returns the lines of the report."""
    if not source.origin:
        raise FlagError(f"--from={source.folder}: is a workdir already; write it out with --workdir and --to")
    if not is_unused(workdir):
        raise FlagError(f"--workdir={workdir}: exists and is not empty; choose another")
    params = source.params(source.config, storage_mesh(source.config, source.heads))
    write_model(workdir, source, params)
    return _described(source, params) | {
        "from": f"{source.origin['model_type']}, {source.origin['architectures'][0]}",
        "next": f"lmjax train --init_from={shell_quoted(workdir)} --data=TEXT",
    }


def _write_adapter(source: Pretrained, folder: pathlib.Path, values: flags.FlagValues) -> dict[str, str]:
    """Writes the adapter of a run in PEFT's format, and returns the lines of the report."""
    check_free(folder)
    heads, adapted = exported_heads(source.config, source.heads), source.adapted
    origin = open_pretrained(adapted.base.place, adapted.base.step).origin
    description = choose_family(source.config, heads, values["family"].value, origin)
    left_out = {HEADS[head].subtree for head in source.heads if head not in heads}
    own = jax.device_get(adapted.own(storage_mesh(source.config, source.heads)))
    own = in_own_units(source.tasks, {part: x for part, x in own.items() if part not in left_out})
    with new_folder(folder) as temporary:
        write_adapter(temporary, description, Adapter(adapted.config, flat(own), adapted.base.place))
    name = description.values["architectures"][0]
    return {
        "adapter": f"{adapted.config.kind} of {count_parameters(own):,} parameters, in PEFT's format",
        "base": f"{description.model_type}, {name}, {adapted.base.place}",
        "next": f"peft.PeftModel.from_pretrained({name}.from_pretrained(BASE), {str(folder)!r})",
    }


def _write_out(source: Pretrained, folder: pathlib.Path, values: flags.FlagValues) -> dict[str, str]:
    """Writes a Hugging Face checkpoint, and returns the lines of the report."""
    # Checked before the parameters are read, which may take minutes.
    check_free(folder)
    if not math.isfinite(shard_gb := values["shard_gb"].value):
        raise FlagError(f"--shard_gb={shard_gb}: is not a size; give gigabytes, such as 5")
    heads = exported_heads(source.config, source.heads)
    description = choose_family(source.config, heads, values["family"].value, source.origin)
    tokenizer = load_tokenizer(str(source.folder))
    params = source.params(source.config, storage_mesh(source.config, source.heads))
    left_out = {HEADS[head].subtree for head in source.heads if head not in heads}
    params = in_own_units(source.tasks, {part: x for part, x in params.items() if part not in left_out})

    def beside(new: pathlib.Path) -> None:
        # Vectors depend on the tokens around a text.
        form = source.prompts(tokenizer) if Embedding.name in source.tasks else None
        export_tokenizer(tokenizer, new, description.model_type, source.config.max_length, form)
        if (source.folder / GENERATION).is_file():
            shutil.copy(source.folder / GENERATION, new)
        if Embedding.name in source.tasks:
            write_sentence(new, source.config, source.length)

    export(
        description,
        source.config,
        params,
        folder,
        dtype=values["dtype"].value,
        extra={}
        if source.origin
        else task_fields(source.tasks, source.length) | _special_ids(tokenizer) | _stop(source, tokenizer),
        beside=beside,
        shard_bytes=int(shard_gb * 1e9),
    )
    files = list(folder.glob("*.safetensors"))
    size = math.fsum(f.stat().st_size for f in files) / 2**30
    name = description.values["architectures"][0]
    return _described(source, params) | {
        "as": f"{description.model_type}, {name}, {len(files)} file(s), {size:.2f} GiB",
        "next": f"transformers.{name}.from_pretrained({str(folder)!r})",
    }
