"""Where a figure was measured: CPU, threads, instruction sets, versions. Facts for reports and certificates."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import roadworthy

# What decides the speed of int8 and float kernels, in the spelling of /proc/cpuinfo: x86 first, then arm64.
ISA_OF_INTEREST = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip

# What may influence a figure: name shown -> distributions that provide it, the first one installed counts.
PACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "openvino": ("openvino",),
}


def environment(threads: int | None = None) -> dict[str, Any]:
    """Plain facts about this machine and this process, ready for JSON.

    threads: the number of threads that was measured with; None where nothing was.
    Keys: cpu, arch, os, cores (usable by this process), cores_online, cpu_quota (cores that the control group
    allows, or None), threads, isa (list), memory_gb, governor (or None), versions (name -> version; packages that are
    not installed are absent). Nothing is imported for it: versions are read from package metadata.
    """
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "cpu": cpu_name(),
        "arch": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "cores": usable_cores(),
        "cores_online": os.cpu_count(),
        "cpu_quota": _cpu_quota(),
        "threads": threads,
        "isa": [name for name in ISA_OF_INTEREST if name in flags],
        "memory_gb": _memory_gb(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "versions": versions(),
    }


def cpu_name() -> str:
    """The CPU's own name, as far as the system tells it."""
    cpuinfo = _cpuinfo()
    return cpuinfo.get("model name") or cpuinfo.get("Processor") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on: its affinity mask where there is one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python, Roadworthy and the packages of `PACKAGES` that are installed."""
    found = {"python": platform.python_version(), "roadworthy": roadworthy.__version__}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    block: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            if block:
                break
            continue
        block[key.strip()] = value.strip()
    return block


def _cpu_quota() -> float | None:
    words = (_read("/sys/fs/cgroup/cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None
