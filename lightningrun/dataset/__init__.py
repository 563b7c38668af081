"""Rows in, from files, queries, Python functions or Hugging Face: every row checked, every split hashed."""

from lightningrun.dataset.draw import draw
from lightningrun.dataset.reading import Dataset, Split, load
from lightningrun.dataset.sources import Locate

__all__ = ["Dataset", "Locate", "Split", "draw", "load"]
