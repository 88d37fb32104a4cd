"""A worker with lmjax's generation, exactly as `lmjax generate` runs it, with random weights of a preset."""

import argparse
import statistics
import time
from typing import Any

from generation_workloads import WORKLOADS, Workload, prompt_tokens
from worker import serve

from lmjax.parallel.compilation_cache import cache_compilations
from lmjax.parallel.malloc import keep_freed_memory


def build(workload: Workload, dtype: str, cache: str):
    """Returns a function that generates texts, and one that returns facts for the first line of the benchmark."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lmjax.data.sources import DataConfig
    from lmjax.inference.generate.beam import BeamConfig, BeamSearch
    from lmjax.inference.generate.requests import Request
    from lmjax.inference.generate.sampling import Sampling, SamplingConfig
    from lmjax.inference.generate.writing import Writing
    from lmjax.inference.loaded import LoadedModel, PromptFormat
    from lmjax.model.language_model import LanguageModel, init_params
    from lmjax.model.outputs_first import outputs_first
    from lmjax.model.parameters import unboxed
    from lmjax.model.presets import PRESETS
    from lmjax.parallel.mesh import ParallelConfig, make_mesh
    from lmjax.runs.trained import multiplies_columns

    cache_compilations(DataConfig().cache_path)
    fields = {"scan_layers": False, "dtype": dtype, "param_dtype": dtype}
    config = PRESETS[workload.preset].model_copy(update=fields)
    model = LanguageModel(config)
    rng = np.random.default_rng(0)
    shapes = unboxed(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.02, x.shape), x.dtype), shapes)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    if workload.batch * workload.beams > 1 and multiplies_columns(config, mesh):
        params = outputs_first(params)

    class Ids:
        """The part of a tokenizer that prompts of ids need."""

        pad_id = 0

    loaded = LoadedModel(model, params, Ids(), PromptFormat(), mesh)
    beams = workload.beams > 1
    strategy = BeamSearch.of(BeamConfig(beams=workload.beams)) if beams else Sampling.of(SamplingConfig())
    tokens = prompt_tokens(workload, config.vocab_size)
    requests = [Request(i, i, tuple(row.tolist())) for i, row in enumerate(tokens)]

    def write() -> tuple[float, Any]:
        start = time.perf_counter()
        writing = Writing(loaded, requests, strategy, stop=(), max_new_tokens=workload.new, chunk=512, kind=cache)
        jax.block_until_ready(writing.decoding.tokens)
        first = time.perf_counter() - start
        writing.advance(workload.new)
        jax.block_until_ready(writing.decoding.tokens)
        return first, writing

    def run(times: int) -> float:
        return min(write()[0] for _ in range(times))

    def facts() -> dict:
        writing = write()[1]
        kept = sum(x.nbytes for x in jax.tree.leaves(writing.decoding.cache.layers))
        tables = params["backbone"]["inputs"]["positions"]["table"].nbytes if config.positions == "learned" else 0
        # A token reads one row of the token and position tables; the output head reads the whole token table.
        return {
            "weights_bytes": sum(x.nbytes for x in jax.tree.leaves(params)) - tables,
            "cache_bytes": kept,
            "bandwidth": read_bandwidth(),
            "device": jax.devices()[0].device_kind,
        }

    return run, facts


def read_bandwidth() -> float:
    """Returns the median speed, in bytes per second, of reading an array that is larger than the processor's caches."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones((1 << 26,), jnp.float32)
    total, seconds = jax.jit(jnp.sum), []
    total(array).block_until_ready()
    for _ in range(31):
        start = time.perf_counter()
        total(array).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return array.nbytes / statistics.median(seconds)


def main() -> None:
    """Serves the workload of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", required=True, choices=WORKLOADS)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--cache", default="compute")
    args = parser.parse_args()
    keep_freed_memory()
    serve(lambda: build(WORKLOADS[args.workload], args.dtype, args.cache))


if __name__ == "__main__":
    main()
