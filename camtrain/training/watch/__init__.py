"""Shows the same validation pictures after every epoch, on disk and in loggers."""

from camtrain.training.watch.callback import CAMLogger

__all__ = ["CAMLogger"]
