"""``asyncio.timeout`` on every Python that we run on. Unlike ``wait_for``, it makes no task of what it bounds."""

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
