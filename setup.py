"""Installs lmjax; the extras are the heavy or optional parts."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "lmjax/__init__.py").read_text()).group(1)

VIZ = ["matplotlib>=3.9", "tensorboard>=2.17"]
EVALUATE = ["scikit-learn>=1.5", "sacrebleu>=2.4.3", "rouge-score>=0.1.2"]
# The methods lime and shap of lmjax explain.
EXPLAIN = ["scikit-learn>=1.5", "shap>=0.48"]
# --near and --languages of lmjax data.
AUDIT = ["datasketch>=1.6.5", "py3langid>=0.4"]
# --projection=umap of lmjax embed; numba and llvmlite are 64 MB.
UMAP = ["umap-learn>=0.5.12"]
SLURM = ["submitit>=1.5.3"]
SEARCH = ["optuna>=4.5"]
CHAT = ["jinja2>=3.1.6"]
SERVE = ["starlette>=0.46", "uvicorn>=0.34", "prometheus-client>=0.21", *CHAT]
GGUF = ["gguf>=0.17"]
STABLEHLO = ["flatbuffers>=24"]
DEV = [
    *EVALUATE,
    *EXPLAIN,
    *AUDIT,
    *SLURM,
    *SEARCH,
    *SERVE,
    *STABLEHLO,
    *GGUF,
    "pytest>=8.3",
    "pytest-xdist>=3.7",
    "hypothesis>=6.100",
    "ruff>=0.17",
    "nbclient>=0.10",
    "ipykernel>=6.29",
    "matplotlib>=3.9",
    "llguidance>=1.9",
    "lm-eval>=0.4.13",
    # The tests compare entities with the first, and corrected p-values and power with the second.
    "nervaluate>=1.2.1",
    "statsmodels>=0.14.4",
]

setup(
    name="lmjax",
    version=VERSION,
    description="Encoder, decoder and encoder-decoder language models in JAX: one block, one loop, flags alone.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lmjax", "lmjax.*"]),
    package_data={"lmjax.serving": ["page/*"]},
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12",
        "grain>=0.2.18",
        "jax>=0.10",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "protobuf>=5",
        "pydantic>=2.14",
        "safetensors>=0.8",
        "scipy>=1.14",
        "sentencepiece>=0.2.2",
        "tensorboardX>=2.6.5",
        "tokenizers>=0.23",
        "tqdm>=4.67",
        # The checksums of checkpoints, in a tenth of the time of those of the standard library.
        "xxhash>=3.0",
    ],
    extras_require={
        "dev": DEV,
        "viz": VIZ,
        # The metrics of classes and numbers, of translations, and of summaries.
        "evaluate": EVALUATE,
        "explain": EXPLAIN,
        "audit": AUDIT,
        "umap": UMAP,
        # Chat templates: older versions of jinja2 have known ways out of its sandbox.
        "chat": CHAT,
        "serve": SERVE,
        "harness": ["lm-eval>=0.4.13"],
        # --regex and --json_schema of lmjax generate.
        "constrain": ["llguidance>=1.9"],
        # --launcher=slurm of lmjax sweep.
        "slurm": SLURM,
        # --search of lmjax sweep.
        "search": SEARCH,
        # --format=gguf of lmjax convert.
        "gguf": GGUF,
        # --format=stablehlo of lmjax convert.
        "stablehlo": STABLEHLO,
        "cuda": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # The tests that compare with transformers: install torch's CPU build first.
        "parity": ["torch==2.13.0", "transformers>=5.23", "peft>=0.21"],
    },
    entry_points={"console_scripts": ["lmjax=lmjax.cli:main"]},
)
