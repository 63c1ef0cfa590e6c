"""What makes a `BatchNormLayer` one of torch's batch-norm layers."""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hnetcl.bn.base import NormLayer
from hnetcl.bn.gaussian import of_channels
from hnetcl.bn.statistics import StatisticsMode
from hnetcl.errors import ArgumentError
from hnetcl.kernels.layout import sum_dtype


class TorchsFamily(NormLayer, _BatchNorm):  # type: ignore[misc]  # whose annotations leave None out
    """Statistics that come from torch's layers, and what torch's own code asks of such layers."""

    statistics_mode: StatisticsMode
    location: nn.Parameter
    factor: nn.Parameter
    given: dict[str, Tensor] | None  # see `BatchNormLayer`

    def give(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Makes torch's running statistics [C], [C] and [] those of all rows, present and future; for d = 1.

        What a hypernetwork is to write starts at them too.
        """
        if mean.is_meta:
            return
        with torch.no_grad():
            mean, var = (t.detach().to(sum_dtype(t.dtype)) for t in (mean, var))
            if self.statistics_mode.written:
                location, factor = of_channels(mean, var, self.eps)
                self.location.copy_(location)
                self.factor.copy_(factor)
            if not self.row_names:
                return
            values = self.statistics_mode.given_row(self, mean, var, count)
            self.given = {name: v.clone().cpu().unsqueeze(0) for name, v in zip(self.row_names, values, strict=True)}
            for name, row in self.rows.items():
                row.copy_(self.given[name].expand(row.shape))

    def statistics_tensors(self) -> dict[str, Tensor]:
        written = {"location": self.location, "factor": self.factor} if self.statistics_mode.written else {}
        return self.rows | written

    def reset_running_stats(self) -> None:
        """Makes the chosen row, or the only one, mean 0 and covariance I again, as torch's layers do.

        Raises:
            ValueError: several rows and none chosen.
        """
        if self.row_names:
            fresh = self.statistics_mode.fresh_row(self, *self._standard_row())
            self.write(None, *(value.squeeze(0) for value in fresh))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Also takes the state of torch's layer, whose statistics [C] become those of all rows, present and future."""
        own = {name: state_dict.get(prefix + name) for name in ("running_mean", "running_var", "num_batches_tracked")}
        mean, var, count = own.values()
        wanted = torch.Size([self.num_features])
        if self.algebra.dim == 1 and isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.shape == var.shape == wanted:
            self.give(mean, var, torch.zeros((), dtype=torch.long) if count is None else count)
            for name in own:
                state_dict.pop(prefix + name, None)
            state_dict |= {prefix + name: value for name, value in self.statistics_tensors().items()}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def qconfig(self) -> Any:
        """How torch's quantization is to treat the layer, where that was set."""
        if sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":  # it asks for this, and takes the rows for torch's
            allowed = "can't be converted by torch; set its `sync` instead, or say convert_batchnorm(net, sync=True)"
            raise ArgumentError("module", type(self).__name__, allowed)
        if "qconfig" not in self.__dict__:
            raise AttributeError("qconfig")
        return self.__dict__["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["qconfig"] = value
