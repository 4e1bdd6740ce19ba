"""Features: what transcoders find active in one prompt, with names and tables. The core computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _check
from .._display import SHOWN, html_table
from .._tables import text_table
from ..items import token_label
from ..model.run import Run
from .arrays import layers_text

if TYPE_CHECKING:
    import pandas as pd

    from .transcoders import Transcoders

Real: TypeAlias = npt.NDArray[np.floating[Any]]

RECORDED = (
    "pattern", "ln1_scale", "ln2_scale", "ln_final_scale", "ln2_normalized", "embed", "pos_embed",
    "resid_pre", "resid_mid", "resid_post", "mlp_out",
)  # fmt: skip


class Features:
    """The active features of one prompt, and what they leave unexplained.

    Made by `Transcoders.features`. There are n active features, sorted by (layer, position, feature), in L
    layers, T tokens and model width E. Arrays are read-only views of the core's memory; real is float32
    (float64 for a float64 model). Layers and positions count from 0 and are the model's.
    """

    def __init__(self, core: Any, run: Run, transcoders: Transcoders) -> None:
        """Made by `Transcoders.features`."""
        self._core = core
        self.run = run  #: the `Run` that they were found in
        self.transcoders = transcoders  #: the `Transcoders` that found them

    @property
    def layer(self) -> npt.NDArray[np.int32]:
        """int32 [n]: layer of each active feature."""
        return self._int32("layer")

    @property
    def position(self) -> npt.NDArray[np.int32]:
        """int32 [n]: position of the token, from 0."""
        return self._int32("position")

    @property
    def feature(self) -> npt.NDArray[np.int32]:
        """int32 [n]: number of the feature in its layer."""
        return self._int32("feature")

    @property
    def activation(self) -> Real:
        """real [n]: never 0."""
        return self._real("activation")

    @property
    def start(self) -> npt.NDArray[np.int64]:
        """int64 [L + 1]: the features of layer l are start[l] .. start[l + 1] - 1."""
        array: npt.NDArray[np.int64] = self._core.array("start")
        return array

    @property
    def reconstruction(self) -> Real:
        """real [L, T, E]: what the transcoders write to each MLP output, with skip and output_bias; 0 in
        layers without a transcoder."""
        return self._real("reconstruction")

    @property
    def error(self) -> Real:
        """real [L, T, E]: mlp_out - reconstruction; all of mlp_out in layers without a transcoder."""
        return self._real("error")

    def _int32(self, name: str) -> npt.NDArray[np.int32]:
        array: npt.NDArray[np.int32] = self._core.array(name)
        return array

    def _real(self, name: str) -> Real:
        array: Real = self._core.array(name)
        return array

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def n_tokens(self) -> int:
        """T, the number of tokens."""
        return int(self.error.shape[1])

    @property
    def l0(self) -> np.ndarray:
        """float64 [L]: active features per token; NaN for layers without a transcoder."""
        return self._of_layers(np.diff(self.start) / self.n_tokens)

    def _of_layers(self, values: np.ndarray) -> np.ndarray:
        """float64 [L]: values where a layer has a transcoder, else NaN."""
        return np.where(np.isin(np.arange(len(values)), self.transcoders.layers), values, np.nan)

    @property
    def explained_variance(self) -> np.ndarray:
        """float64 [L]: 1 - sum error**2 / sum (mlp_out - its mean over positions)**2; NaN for one token and
        for layers without a transcoder."""
        centred = self.run.mlp_out - self.run.mlp_out.mean(axis=1, dtype=np.float64, keepdims=True)
        total, error = (np.square(a, dtype=np.float64).sum(axis=(1, 2)) for a in (centred, self.error))
        return self._of_layers(np.where(total > 0, 1 - error / np.where(total > 0, total, 1), np.nan))

    def to_pandas(self, base: int = 0) -> pd.DataFrame:
        """One row per active feature.

        Parameters
        ----------
        base : {0, 1}, default 0
            Number of the first position.

        Returns
        -------
        pandas.DataFrame
            Columns layer, position, token, feature, activation.
        """

        base = _check.base(base)
        tokens = np.array([token_label(token) for token in self.run.token_strings], object)
        columns = {
            "layer": self.layer,
            "position": self.position + base,
            "token": tokens[self.position],
            "feature": self.feature,
            "activation": self.activation,
        }
        table: pd.DataFrame = text_table(columns)
        return table

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Features cannot be pickled or sent to another process: send the transcoders, the model and the "
            "prompt, or keep to_pandas()"
        )

    def __repr__(self) -> str:
        known = self.explained_variance[np.isfinite(self.explained_variance)]
        explained = known.mean() if len(known) else np.nan
        layers, n_layer = self.transcoders.layers, len(self.error)
        where = "" if len(layers) == n_layer else f" and {layers_text(layers)} of {n_layer}"
        return (
            f"Features({len(self):,} active in {self.n_tokens} tokens{where}, "
            f"{np.nansum(self.l0):.1f} per token, "
            f"explained variance {explained:.3f}, transcoders={self.transcoders.name!r})"
        )

    def _repr_html_(self) -> str:
        return html_table(self, self.to_pandas().nlargest(SHOWN, "activation"))
