"""The loss that teaches statistics, to be added to a training loss."""

import torch
from torch import Tensor, nn

from hnetcl.bn.layer import BatchNormLayer
from hnetcl.modules import all_modules


def auxiliary_loss(module: nn.Module) -> Tensor:
    r"""The sum of the auxiliary losses of all batch-norm layers in a module, of their training forwards since the last call.

    Learnable rows, and distilled statistics, learn by it:

    .. math:: \sum_{layers} w \, KL(N(\mu, V) \,\|\, N(\hat\mu, \hat V)), \qquad w = \text{auxiliary\_weight}

    where \hat\mu and \hat V are learned and \mu and V are what they are to be: averaged over the numbers of a layer, and but
    for a term that does not depend on what is learned. No gradient flows into what comes before a layer.

        loss = F.cross_entropy(net(x), y) + hnetcl.auxiliary_loss(net)
        loss.backward()

    Each forward counts once: a layer that runs twice has two losses, a forward that `torch.utils.checkpoint` runs again in
    backward has no further one (but compile what contains a checkpoint, not what is in it). Forwards in evaluation or without
    gradients have none. Take it once per backward, also where gradients accumulate or a scaler scales the loss. What is pending
    keeps its graph; a layer whose losses are never taken raises an error after `BatchNormLayer.auxiliary_limit` forwards.

    Args:
        module: any module, or a layer itself.

    Returns:
        0-dim, with its graph. Where no layer has a loss, a 0-dim zero without graph on the device of the module's first tensor.

    Raises:
        ValueError: a pending loss was computed in a function transform of `torch.func` that is over.
    """
    modules, total = all_modules(module), None
    for each in modules:
        if isinstance(each, BatchNormLayer) and each.pending_losses.count:
            loss = each.pending_losses.take()
            if loss is not None:
                total = loss if total is None else total + loss.to(total.device)
    return torch.zeros((), device=_device(modules)) if total is None else total


def _device(modules: list[nn.Module]) -> torch.device | None:
    """Of the first tensor in these modules."""
    for module in modules:
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    return tensor.device
    return None
