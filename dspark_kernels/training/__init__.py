"""Training a draft by self-distillation: `train(TrainConfig(model, prompts, out))`."""

from .train import TrainConfig, train

__all__ = ["TrainConfig", "train"]
