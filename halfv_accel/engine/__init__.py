"""The surgery on rows, masks and caches, done once for every strategy and family."""

from halfv_accel.engine.run import Run, accelerate

__all__ = ["Run", "accelerate"]
