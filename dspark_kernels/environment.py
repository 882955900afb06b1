"""What `dspark env` reports: versions, devices, and which backend serves each op and why."""

import importlib.metadata
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from . import __version__, _library

PACKAGES = ("torch", "triton", "numpy", "transformers", "safetensors")


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def device_name(device: torch.device | str) -> str:
    """The model of a GPU ("cuda", "cuda:1") or of this computer's processor ("cpu")."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def environment() -> dict:
    """Versions, devices and backends as plain data."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "dspark_kernels": __version__,
        "python": platform.python_version(),
        "packages": {package: version_of(package) for package in PACKAGES},
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "native_library": str(_library.NATIVE_PATH) if _library.NATIVE_PATH else "not built",
        "native_cuda_archs": _library.NATIVE_CUDA_ARCHS or "none",
        "backends": {
            device: {
                op: dict(zip(("backend", "why"), _library.backend_of(op, device), strict=True))
                for op in _library.SCHEMAS
            }
            for device in ("cpu", "cuda")
        },
    }


def show(report: dict, console: Console) -> None:
    """The report for people."""
    versions = Table("package", "version", title="versions")
    versions.add_row("dspark_kernels", report["dspark_kernels"])
    versions.add_row("python", report["python"])
    for name, version in report["packages"].items():
        versions.add_row(name, version)
    console.print(versions)
    console.print(f"GPU: {report['gpu']}; CPU threads: {report['threads']}")
    console.print(f"native library: {report['native_library']}", soft_wrap=True)
    console.print(f"CUDA architectures in it: {report['native_cuda_archs']}")
    for device, backends in report["backends"].items():
        table = Table("op", "backend", "why", title=f"backends on {device}")
        for op, entry in backends.items():
            table.add_row(op, entry["backend"], entry["why"])
        console.print(table)
