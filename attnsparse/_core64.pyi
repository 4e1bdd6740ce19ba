"""The C core in float64; signatures as in _core.pyi."""

from ._core import *  # noqa: F403
