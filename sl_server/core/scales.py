"""Comparison of the normalisation of clients with data of their own. Pure."""

from __future__ import annotations

from sl_common.holdings import Inputs


def scale_warning(client: str, inputs: Inputs, known: Inputs) -> str:
    """Return a warning if two clients with data of their own normalise them very differently.

    Means of two data sets differ a little; a network that gets one at 0 and another far from it learns the difference.
    """
    for what in ("mean", "std"):
        ours, theirs = getattr(known, what), getattr(inputs, what)
        if len(ours) != len(theirs) or not len(ours) == len(known.std) == len(inputs.std):
            continue
        for one, other, these, those in zip(ours, theirs, known.std, inputs.std, strict=True):
            far = abs(one - other) > max(these, those) / 2 if what == "mean" else max(one, other) > 2 * min(one, other)
            if far:
                return (
                    f"{client}: its own data are normalised with another {what} than those of the first client: "
                    f"{other:.6g} where those have {one:.6g}, of {inputs}; one network sees both"
                )
    return ""
