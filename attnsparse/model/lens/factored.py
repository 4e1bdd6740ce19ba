"""FactoredMatrix: a product of two thin matrices, never multiplied out unless asked."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ... import _check


class FactoredMatrix:
    """The matrix ``A @ B``, kept as its two factors; with leading axes, a stack of such matrices.

    `Model.OV` and `Model.QK` give the maps of attention heads, E x E and of rank at most D. Everything but
    `AB` works on the factors alone. Results are float64.

    Parameters
    ----------
    A : array of float [..., m, r]
        Left factor.
    B : array of float [..., r, n]
        Right factor; leading axes are broadcast against those of `A`.

    Raises
    ------
    ValueError
        If the factors do not fit each other.
    """

    def __init__(self, A: np.ndarray, B: np.ndarray) -> None:
        left, right = (np.asarray(_real(factor, name)) for factor, name in ((A, "A"), (B, "B")))
        if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
            raise ValueError(f"A and B must be [..., m, r] and [..., r, n], got {left.shape}, {right.shape}")
        try:
            stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        except ValueError:
            raise ValueError(
                f"the leading axes of A and B must fit, got shapes {left.shape} and {right.shape}"
            ) from None
        self.A = np.broadcast_to(left, (*stack, *left.shape[-2:]))  #: left factor, read-only
        self.B = np.broadcast_to(right, (*stack, *right.shape[-2:]))  #: right factor, read-only

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, leading axes included."""
        return (*self.A.shape[:-1], self.B.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of the product."""
        return self.A.ndim

    @property
    def T(self) -> FactoredMatrix:
        """The transpose (of each matrix of a stack): ``B.T @ A.T``."""
        return FactoredMatrix(np.swapaxes(self.B, -1, -2), np.swapaxes(self.A, -1, -2))

    @property
    def AB(self) -> np.ndarray:
        """The product multiplied out, [..., m, n]."""
        product: np.ndarray = self.A @ self.B
        return product

    @functools.cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, upper = np.linalg.qr(self.A.astype(np.float64))
        right, lower = np.linalg.qr(np.swapaxes(self.B, -1, -2).astype(np.float64))
        u, s, vh = np.linalg.svd(upper @ np.swapaxes(lower, -1, -2), full_matrices=False)
        return left @ u, s, right @ np.swapaxes(vh, -1, -2)

    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Singular value decomposition, from the factors.

        Returns
        -------
        U : numpy.ndarray
            Left singular vectors as columns, [..., m, r].
        S : numpy.ndarray
            Singular values, largest first, [..., r].
        V : numpy.ndarray
            Right singular vectors as columns, [..., n, r]: the matrix is ``U @ diag(S) @ V.T``, as in
            TransformerLens.
        """
        return self._svd

    @property
    def U(self) -> np.ndarray:
        """Left singular vectors as columns, [..., m, r]."""
        return self._svd[0]

    @property
    def S(self) -> np.ndarray:
        """Singular values, largest first, [..., r]."""
        return self._svd[1]

    @property
    def V(self) -> np.ndarray:
        """Right singular vectors as columns, [..., n, r]."""
        return self._svd[2]

    @property
    def eigenvalues(self) -> np.ndarray:
        """The r eigenvalues that can be other than 0, complex [..., r], in no order: those of ``B @ A``.

        Raises
        ------
        ValueError
            If the matrix is not square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise ValueError(f"only a square matrix has eigenvalues, this one has shape {self.shape}")
        inner = np.empty((*self.A.shape[:-2], self.A.shape[-1], self.A.shape[-1]))
        for at in np.ndindex(self.A.shape[:-2]):  # one at a time: copies of all factors may not fit
            inner[at] = self.B[at].astype(np.float64) @ self.A[at].astype(np.float64)
        values: np.ndarray = np.linalg.eigvals(inner)
        return values

    def norm(self) -> Any:
        """Frobenius norm.

        Returns
        -------
        float or numpy.ndarray
            One for each matrix of a stack.
        """
        norm = np.linalg.norm(self.S, axis=-1)
        return float(norm) if self.ndim == 2 else norm

    def __matmul__(self, other: FactoredMatrix | np.ndarray) -> Any:
        if isinstance(other, FactoredMatrix):
            return FactoredMatrix(self.A, (self.B @ other.A) @ other.B)
        right = _operand(other, self.shape[-1], 0)
        if right.ndim > 1:
            return FactoredMatrix(self.A, self.B @ right)
        return (self.A @ (self.B @ right)[..., None])[..., 0]

    # NumPy leaves `array @ matrix` to this class instead of taking it apart.
    __array_ufunc__ = None

    def __rmatmul__(self, other: np.ndarray) -> Any:
        left = _operand(other, self.shape[-2], -1)
        if left.ndim > 1:
            return FactoredMatrix(left @ self.A, self.B)
        return ((left @ self.A)[..., None, :] @ self.B)[..., 0, :]

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Matrices of a stack, chosen by the leading axes."""
        index = index if isinstance(index, tuple) else (index,)
        if len(index) > self.ndim - 2:
            raise IndexError(f"a stack with {self.ndim - 2} leading axes takes no {len(index)} indices")
        return FactoredMatrix(self.A[index], self.B[index])

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={self.shape}, inner={self.A.shape[-1]})"


def _real(values: object, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind == "f":
        return array
    return _check.reals(values, name, np.float64)


def _operand(other: Any, size: int, axis: int) -> np.ndarray:
    """What is multiplied with a factored matrix, of which this axis (or the last but one) has this size."""
    array = _real(other, "the other matrix")
    at = -1 if array.ndim == 1 or axis == -1 else -2
    if array.ndim < 1 or array.shape[at] != size:
        raise ValueError(f"a matrix product needs {size} values along axis {at}, got shape {array.shape}")
    return array
