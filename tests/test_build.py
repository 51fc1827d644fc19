"""What CMake decides before anything is compiled: instruction sets per file, other processors, no compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def configure(folder: Path, *options: str, **environment: str) -> tuple[str, dict[str, str]]:
    """What CMake printed, and the command of each source file."""
    maker = "Ninja" if shutil.which("ninja") else "Unix Makefiles"
    done = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", maker, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = folder / "compile_commands.json"
    entries = json.loads(commands.read_text()) if commands.is_file() else []
    return done.stdout + done.stderr, {Path(e["file"]).name: e["command"] for e in entries}


def kernels(suffix: str) -> set[str]:
    found = {p.name for p in (ROOT / "native/kernels").glob(f"*_{suffix}.cc")}
    assert found
    return found


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
def test_instruction_sets_are_given_per_file(tmp_path: Path):
    _, commands = configure(tmp_path, "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=x86_64")
    avx2, avx512 = kernels("avx2"), kernels("avx512vnni")
    for name, command in commands.items():
        assert ("-mavx2" in command) == (name in avx2), name
        assert ("-mavx512vnni" in command) == (name in avx512), name
        assert "-march=native" not in command and "-ffp-contract=off" in command
        assert "ROADWORTHY_X86" in command
    assert set(commands) >= avx2 | avx512 | kernels("portable") | {"c_api.cc", "session.cc"}


@pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "options",
    [("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=loongarch64"), ("-DROADWORTHY_PORTABLE=ON",)],
    ids=["another processor", "on request"],
)
def test_elsewhere_only_the_portable_path_is_compiled(tmp_path: Path, options: tuple[str, ...]):
    _, commands = configure(tmp_path, *options)
    assert not set(commands) & (kernels("avx2") | kernels("avx512vnni"))
    assert set(commands) >= kernels("portable") | {"c_api.cc", "session.cc"}
    for command in commands.values():
        assert " -m" not in command and "ROADWORTHY_X86" not in command


def test_without_a_compiler_it_warns_and_builds_nothing(tmp_path: Path):
    text, commands = configure(tmp_path, CXX="/nowhere/c++")
    assert "No C++ compiler was found" in text and "apt install g++" in " ".join(text.split())
    assert not commands and not list(tmp_path.rglob("*.cc.o"))
