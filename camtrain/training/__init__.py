"""Training with Lightning: the only room that imports Lightning and wandb."""

from camtrain.training.datamodule import CAMDataModule
from camtrain.training.module import CAMModule
from camtrain.training.run.fit import FitResult, fit
from camtrain.training.run.wandb_options import WandbOptions
from camtrain.training.watch import CAMLogger

__all__ = ["CAMDataModule", "CAMLogger", "CAMModule", "FitResult", "WandbOptions", "fit"]
