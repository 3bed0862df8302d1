"""Watching a network learn to look: the same pictures after every epoch, on disk and in loggers."""

from camtrain.training.watching.callback import CAMLogger

__all__ = ["CAMLogger"]
