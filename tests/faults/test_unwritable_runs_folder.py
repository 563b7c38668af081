"""A runs folder that may not be written is the user's to change, not a bug of ours."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lightningrun.errors import DiskFull
from lightningrun.files import disk_errors


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_refused_write_names_another_place(number: int) -> None:
    with pytest.raises(DiskFull, match="--runs-dir"), disk_errors(Path("runs")):
        raise OSError(number, "no")
