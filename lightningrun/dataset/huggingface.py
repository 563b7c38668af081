"""Rows of a dataset of the Hugging Face hub, or of a folder that ``save_to_disk`` wrote. Runs in a loader."""

from __future__ import annotations

from typing import Any

PACKAGE = "datasets"


def rows(name: str, default: str, saved: bool = False, subset: str = "", split: str = "", revision: str = "") -> Any:
    """``name`` is the hub's, or with ``saved`` a folder. ``default`` is the split to take where none is named."""
    import datasets

    datasets.disable_progress_bars()
    if not saved:
        return datasets.load_dataset(name, subset or None, split=split or default, revision=revision or None)
    found = datasets.load_from_disk(name)
    if not isinstance(found, datasets.DatasetDict):
        if split:
            raise ValueError(f"it holds one split only, not one called {split!r}")
        return found
    if (split or default) not in found:
        raise ValueError(f"it has no split {split or default!r}; name one of {', '.join(found)} as 'split'")
    return found[split or default]
