"""No code path of lmjax runs what it reads: no pickle, no `eval`, no remote code, no shell."""

import ast
import pathlib

import pytest

import lmjax
from tests.faults.dangers import METHODS, MODULES, NAMES, dangers, dangers_under

ROOT = pathlib.Path(lmjax.__file__).parent
# Where one is needed, and why nothing that is read from outside decides what runs there.
ALLOWED = {
    "lmjax.__init__.__getattr__ importlib.import_module": "the modules of the public names, which stand in the file",
    "lmjax.evaluation.intervals.required importlib.import_module": "its callers name packages of an extra as constants",
    "lmjax.training.board._tensorboardx importlib.import_module": "its callers name modules as constants",
    "lmjax.python_file.run_file importlib.util.spec_from_file_location": "experiments and sweeps are trusted code",
    "lmjax.python_file.run_file importlib.util.module_from_spec": "experiments and sweeps are trusted code",
    "lmjax.python_file.run_file exec_module": "experiments and sweeps are trusted code",
    "lmjax.evaluation.documents.DocumentLosses.load numpy.load": "allow_pickle=False: numbers and short texts alone",
    "lmjax.runs.references._read numpy.load": "allow_pickle=False: numbers of one shape and type alone",
    "lmjax.sweep.processes.Pool._start subprocess.Popen": "this Python's own `lmjax sweep --worker`, as a list",
    "lmjax.sweep.slurm.Job.__call__ subprocess.Popen": "this Python's own `lmjax sweep --worker`, as a list",
}


def test_nothing_that_is_read_can_run():
    found = list(dangers_under(ROOT))
    new = [f"{place}: {name} ({reason})" for place, name, reason in found if name not in ALLOWED]
    assert not new, "data could run as code; read it as data, or say in ALLOWED why nothing from outside gets there"


def test_every_exception_is_needed():
    found = {name for _, name, _ in dangers_under(ROOT)}
    assert not ALLOWED.keys() - found, "these are gone from lmjax/; take them out of ALLOWED"


DANGEROUS = {
    "import pickle\npickle.loads(x)": "pickle",
    "from pickle import loads as read": "pickle",
    "import cloudpickle as c": "cloudpickle",
    "def f():\n    import dill": "dill",
    "import marshal": "marshal",
    "import torch.serialization": "torch",
    "import numpy as np\nnp.load(path)": "numpy.load",
    "from numpy import load as read\nread(path)": "numpy.load",
    "reader(path, allow_pickle=True)": "allow_pickle",
    "reader(path, allow_pickle=flag)": "allow_pickle",
    "eval(text)": "eval",
    "list(map(eval, texts))": "eval",
    "exec(compile(text, 'a', 'exec'))": "exec",
    "import builtins as b\nb.eval(text)": "builtins.eval",
    "__import__(name)": "__import__",
    "import os\nos.system(text)": "os.system",
    "from os import system\nsystem(text)": "os.system",
    "import os\nrun = os.popen": "os.popen",
    "import os\nos.execvp(name, arguments)": "os.execvp",
    "import subprocess\nsubprocess.run(text, shell=True)": "shell",
    "import subprocess as s\ns.Popen(f'cat {name}')": "subprocess.Popen",
    "from subprocess import check_output\ncheck_output(command)": "subprocess.check_output",
    "import subprocess\nsubprocess.getoutput('ls')": "subprocess.getoutput",
    "import subprocess, sys\nsubprocess.run([sys.executable, '-c', text])": "sys.executable",
    "import yaml\nyaml.load(text)": "yaml",
    "import importlib\nimportlib.import_module(values['module'])": "importlib.import_module",
    "import importlib\nimportlib.import_module(f'{name}.model')": "importlib.import_module",
    "import importlib.util as u\nu.spec_from_file_location('', path)": "importlib.util.spec_from_file_location",
    "import ctypes\nctypes.CDLL(path)": "ctypes.CDLL",
    "import runpy\nrunpy.run_path(path)": "runpy",
    "import tempfile\ntempfile.mktemp()": "tempfile.mktemp",
    "archive.extractall(folder)": "extractall",
    "import tarfile\ntarfile.open(path)": "tarfile.open",
    "import shutil as s\ns.unpack_archive(path)": "shutil.unpack_archive",
    "AutoModel.from_pretrained(folder, trust_remote_code=True)": "trust_remote_code",
    "model.from_pretrained(folder)": "from_pretrained",
    "class A:\n    def f(self):\n        return lambda x: eval(x)": "eval",
}


@pytest.mark.parametrize("source", DANGEROUS, ids=lambda s: s.replace("\n", "; ")[:50])
def test_what_must_be_found_is_found(source):
    names = {name.split()[-1] for _, name, _ in dangers(source, "lmjax/a.py")}
    assert DANGEROUS[source] in names


HARMLESS = (
    "import re\nre.compile(pattern)",
    "from safetensors.numpy import load",
    "import ast\nast.literal_eval(text)",
    "import importlib\nimportlib.import_module('lmjax.model')\nimportlib.import_module(f'lmjax.commands.{name}')",
    "import subprocess\nsubprocess.run(['git', 'status'], shell=False)",
    "import subprocess, sys\nsubprocess.run([sys.executable, '-P', '-c', TRIAL])",
    "state.eval(x)\nself.compile()",
    "import json\njson.load(file)",
    "import ctypes\nctypes.CDLL(None)",
    "reader(path, allow_pickle=False)",
)


@pytest.mark.parametrize("source", HARMLESS, ids=lambda s: s.replace("\n", "; ")[:50])
def test_what_is_harmless_is_let_be(source):
    assert not list(dangers(source, "lmjax/a.py"))


def test_the_list_is_of_what_exists():
    """A name that is misspelt in the list would be found nowhere."""
    for name in NAMES:
        module, _, last = name.rpartition(".")
        if last == "startfile":  # Windows alone has it
            continue
        owner = __import__(module or "builtins", fromlist=[last])
        assert hasattr(owner, last), name
    assert all(ast.parse(f"import {name}") for name in MODULES)
    assert all(name.isidentifier() for name in METHODS)
