"""The C core in float64; signatures as in _core.pyi."""

from ._core import *  # noqa: F403
from ._core import _share_blas_state as _share_blas_state
