"""Training a draft by self-distillation: `train(TrainConfig(model, prompts, out))`."""

from .config import TrainConfig
from .train import train

__all__ = ["TrainConfig", "train"]
