"""Modules that cannot train on one sample: statistics over it have no variance, and torch raises an error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sl_common.errors import first_line
from sl_common.training.modules import buffers_untouched, seeded


def reason_against_one(module: nn.Module, like: Tensor, *, train: bool = True) -> str | None:
    """Return the reason why the module cannot take one sample shaped as `like`, or None if it can.

    Found by a pass on zeros that leaves the module as it was.
    """
    was = module.training
    try:
        with seeded(0, like.device), buffers_untouched(module), torch.no_grad():
            found = module.train(train)(torch.zeros_like(like).unsqueeze(0))
    except Exception as error:  # the modules may be the user's
        return first_line(error, 200)
    finally:
        module.train(was)
    if isinstance(found, Tensor) and (found.dim() == 0 or len(found) != 1):
        return f"what comes out of it then has shape {tuple(found.shape)}"
    return None
