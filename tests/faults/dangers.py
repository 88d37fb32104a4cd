"""The calls that can turn data into running code, or a name in a file into another file, found in Python source."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

# Modules whose readers build objects, and so run code, of what they read; and frameworks that do so inside.
MODULES = {
    "pickle": "unpickling runs code",
    "_pickle": "unpickling runs code",
    "cloudpickle": "unpickling runs code",
    "dill": "unpickling runs code",
    "joblib": "unpickling runs code",
    "jsonpickle": "unpickling runs code",
    "shelve": "unpickling runs code",
    "marshal": "loads code objects",
    "torch": "torch.load unpickles",
    "tensorflow": "SavedModels run code",
    "transformers": "may fetch and run a model's code",
    "yaml": "yaml.load builds objects",
    "ruamel": "yaml's loaders build objects",
    "runpy": "runs files",
    "code": "runs text",
    "codeop": "compiles text",
    "pty": "runs commands",
    "cffi": "loads native code",
}
# Functions, by their full name.
NAMES = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "__import__": "imports by a name",
    "builtins.eval": "runs text",
    "builtins.exec": "runs text",
    "builtins.compile": "makes code of text",
    "importlib.__import__": "imports by a name",
    "importlib.util.spec_from_file_location": "imports a file by its path",
    "importlib.util.module_from_spec": "imports a file by its path",
    "importlib.machinery.SourceFileLoader": "imports a file by its path",
    "importlib.machinery.ExtensionFileLoader": "imports a file by its path",
    "os.system": "a shell reads the text",
    "os.popen": "a shell reads the text",
    "os.startfile": "opens a file by whatever its name asks for",
    "subprocess.getoutput": "a shell reads the text",
    "subprocess.getstatusoutput": "a shell reads the text",
    "tempfile.mktemp": "another user can take the name first",
    "tarfile.open": "members may name files outside the folder",
    "tarfile.TarFile": "members may name files outside the folder",
    "shutil.unpack_archive": "members may name files outside the folder",
    "numpy.load": "may unpickle; read arrays with numpy.memmap or safetensors",
    "logging.config.fileConfig": "evaluates text of the file",
    "logging.config.listen": "evaluates text of the network",
}
# Methods, whatever they are called on.
METHODS = {
    "exec_module": "runs a module",
    "load_module": "runs a module",
    "extractall": "members may name files outside the folder",
    "from_pretrained": "may fetch and run a model's code; open folders with lmjax.runs.trained",
    "read_pickle": "unpickling runs code",
    "load_dataset": "may run a data set's script",
}
# Arguments that switch one of these on.
SWITCHES = {"allow_pickle", "trust_remote_code", "shell"}
_PREFIXES = {"os.exec": "replaces the process", "os.spawn": "starts a program", "os.posix_spawn": "starts a program"}
_LIBRARIES = {"ctypes.CDLL", "ctypes.PyDLL", "ctypes.cdll.LoadLibrary"}
_SUBPROCESS = {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}


def dangers(source: str, where: str) -> Iterator[tuple[str, str, str]]:
    """Yields each danger in a module: `file:line`, the enclosing function and the name, and why it is one.

    Args:
        source: Python.
        where: what the file is called.
    """
    finder = _Finder(where)
    finder.visit(ast.parse(source))
    yield from finder.found


def dangers_under(folder: pathlib.Path) -> Iterator[tuple[str, str, str]]:
    """Yields the dangers in every module under a folder."""
    for path in sorted(folder.rglob("*.py")):
        yield from dangers(path.read_text(), path.relative_to(folder.parent).as_posix())


class _Finder(ast.NodeVisitor):
    """Walks a module; names are followed through `import a as b` and `from a import b as c`."""

    def __init__(self, where: str):
        self.found: list[tuple[str, str, str]] = []
        self._where, self._scope, self._names = where, list[str](), dict[str, str]()

    def _add(self, node: ast.AST, name: str, reason: str) -> None:
        scope = ".".join([self._where.removesuffix(".py").replace("/", "."), *self._scope])
        self.found.append((f"{self._where}:{node.lineno}", f"{scope} {name}", reason))

    def _module(self, node: ast.AST, name: str) -> None:
        if reason := MODULES.get(name.split(".")[0]):
            self._add(node, name.split(".")[0], reason)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._module(node, alias.name)
            self._names[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level:
            self._module(node, node.module)
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            self._names[alias.asname or alias.name] = full
            self._name(node, full)

    def _scoped(self, node: ast.AST) -> None:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._scoped(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._scoped(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scoped(node)

    def _full(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (base := self._full(node.value)):
            return f"{base}.{node.attr}"
        return None

    def _name(self, node: ast.AST, full: str) -> None:
        reason = NAMES.get(full) or next((why for start, why in _PREFIXES.items() if full.startswith(start)), None)
        if reason:
            self._add(node, full, reason)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._name(node, self._full(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if full := self._full(node):
            self._name(node, full)
        if node.attr in METHODS:
            self._add(node, node.attr, METHODS[node.attr])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
            if keyword.arg in SWITCHES and not off:
                self._add(node, keyword.arg, "switches on what runs code")
        name, first = self._full(node.func), node.args[0] if node.args else None
        if name == "importlib.import_module" and not _fixed(first):
            self._add(node, name, "imports by a name that is computed")
        if name in _LIBRARIES and not (isinstance(first, ast.Constant) and first.value is None):
            self._add(node, name, "loads native code")
        if name in _SUBPROCESS and not isinstance(first, ast.List):
            self._add(node, name, "give the command as a list that is written out here")
        if isinstance(first, ast.List):
            words = {p.value if isinstance(p, ast.Constant) else self._full(p) for p in first.elts}
            if "sys.executable" in words and not words & {"-P", "-I"}:
                self._add(node, "sys.executable", "without -P it imports modules from the current folder")
        self.generic_visit(node)


def _fixed(node: ast.AST | None) -> bool:
    """Returns whether a module's name is written out, at least up to its last part in this package."""
    if isinstance(node, ast.JoinedStr):
        first = node.values[0]
        return isinstance(first, ast.Constant) and first.value.startswith("lmjax.") and first.value.endswith(".")
    return isinstance(node, ast.Constant)
