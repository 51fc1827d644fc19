"""Imports point down: a package may import those below it, never one beside or above it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "roadworthy"

# Highest first; packages in one row never import each other.
LEVELS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"console"},
    {"jobs"},
    {"recipe", "serve"},
    {"steps"},
    {"train", "check"},
    {"quantize", "prune", "zoo"},
    {"run", "optimize", "pack", "track"},
    {"model"},
    {"data"},
    {"detect"},
    {"errors", "_native"},
]
LEVEL = {name: k for k, names in enumerate(LEVELS) for name in names}

# Heavy or replaceable libraries, and the only places that know them.
ONLY_IN = {
    "onnx_ir": {"model/graph.py"},
    "openvino": {"run/openvino.py"},
    "torch": {"zoo", "train", "run/torch", "model/from_torch.py"},
    "click": {"cli", "console.py"},
}
AT_ONCE = ("zoo/", "train/", "run/torch/")
"""What is only imported when PyTorch is wanted may import it at once; so may no __init__.py, which others reach."""
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, anywhere in it, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in late) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            names = [f"{module}.{a.name}" for a in node.names] if module == "roadworthy" else [module]
            found += [(name, id(node) not in late) for name in names]
    return found


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module that an import names, a relative one as seen from the file it stands in."""
    if not node.level:
        return str(node.module)
    package = ["roadworthy", *path.relative_to(SOURCE).parent.parts]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_point_down(path: Path):
    here = package_of(path)
    if here == "__init__":
        return
    assert here in LEVEL, f"{here} has no level; give it one in this test and in ARCHITECTURE.md"
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "roadworthy" or len(parts) == 1 or parts[1] == here:
            continue
        there = parts[1]
        if there.startswith("__"):
            continue
        assert LEVEL[there] > LEVEL[here], f"{path.name} ({here}) imports {module}: that is not below it"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_few_places(library: str):
    for path in FILES:
        where = path.relative_to(SOURCE).as_posix()
        if any(where == home or where.startswith(f"{home}/") for home in ONLY_IN[library]):
            continue
        used = [m for m, _ in imports(path) if m.split(".")[0] == library]
        assert not used, f"{where} imports {library}"


def test_torch_and_openvino_are_imported_late():
    for path in FILES:
        early = [m for m, at_once in imports(path) if at_once and m.split(".")[0] in ("torch", "openvino")]
        where = path.relative_to(SOURCE).as_posix()
        allowed = where.startswith(AT_ONCE) and path.name != "__init__.py"
        assert not early or allowed, f"{path} imports {early} at once"


def test_loading_a_model_needs_no_runtime_library():
    program = (
        "import sys, roadworthy, roadworthy.model.model, roadworthy.optimize, roadworthy.run.torch;"
        "print(sorted({'torch', 'openvino', 'onnxruntime', 'rich', 'jinja2', 'pydantic'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_test_can_fail(tmp_path: Path):
    file = tmp_path / "x.py"
    file.write_text("from roadworthy import check\ndef f():\n    import torch\n")
    assert imports(file) == [("roadworthy.check", True), ("torch", False)]
