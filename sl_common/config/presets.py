"""The published algorithms, one entry each. Only this module of the core knows their names."""

from __future__ import annotations

from dataclasses import dataclass

from sl_common.models.auxiliary import Classifier
from sl_common.protocol import (
    All,
    Always,
    Average,
    Averaged,
    Handoff,
    Head,
    InTurn,
    Local,
    LocalLoss,
    LossGate,
    Mixup,
    Protocol,
    Sequential,
    SplitWithLocalLoss,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A protocol with its source and the traffic of one pass over the data.

    In `traffic`, |D| = samples, S = bytes of one sample's smashed tensor, C = clients, |w| = bytes of weights.
    """

    protocol: Protocol
    source: str
    traffic: str


PRESETS: dict[str, Preset] = {
    "sequential": Preset(
        protocol=Protocol(waves=Sequential(), merge=Handoff()),
        source="Gupta & Raskar 2018, Distributed learning of deep neural network over multiple agents",
        traffic="2|D|S + 2C|w_lower| (handed over through the server)",
    ),
    "parallel": Preset(
        protocol=Protocol(barrier=All()),
        source="Jeon & Kim 2020, Privacy-sensitive parallel split learning (PSL)",
        traffic="2|D|S",
    ),
    "sglr": Preset(
        protocol=Protocol(barrier=All(), head=Head(scatter=Averaged(fraction=0.5), lr_power=0.5)),
        source="Pal et al. 2021, Server-side local gradient averaging and learning rate acceleration (SGLR), "
        "arXiv:2112.05929",
        traffic="2|D|S (the paper counts one broadcast to those that share: (2 - fraction)|D|S + S)",
    ),
    "splitfed_v1": Preset(
        protocol=Protocol(head=Head(copies="per_client"), merge=Average(parts=("lower", "head"))),
        source="Thapa et al. 2022, SplitFed: when federated learning meets split learning (SFLV1); its authors average "
        "unweighted (merge.weighting) and evaluate the pre-round client model",
        traffic="2|D|S + 2C|w_lower|",
    ),
    "splitfed_v2": Preset(
        protocol=Protocol(barrier=InTurn(order="shuffled", unit="epoch"), merge=Average()),
        source="Thapa et al. 2022, SplitFed: when federated learning meets split learning (SFLV2); its authors average "
        "unweighted (merge.weighting) and evaluate the pre-round client model",
        traffic="2|D|S + 2C|w_lower|",
    ),
    "loss_async": Preset(
        protocol=Protocol(waves=Sequential(), gate=LossGate(), merge=Handoff()),
        source="Chen, Li & Chakrabarti 2021, Communication and computation reduction using asynchronous training, "
        "arXiv:2107.09786",
        traffic="(n_A + n_B)/T of |D|S up and n_A/T of |D|S down; 2C|w_lower| in rounds A; T rounds, n_A with "
        "gradients, n_B without",
    ),
    "locsplitfed": Preset(
        protocol=Protocol(
            learner=LocalLoss(), head=Head(copies="per_client"), merge=Average(parts=("lower", "aux", "head"))
        ),
        source="Han et al. 2021, Accelerating federated learning with split learning on locally generated losses",
        traffic="|D|S + 2C(|w_lower| + |w_aux|)",
    ),
    "locfedsl": Preset(
        protocol=Protocol(learner=SplitWithLocalLoss(), barrier=All(), merge=Average(parts=("lower", "aux"))),
        source="Oh et al. 2022, LocFedMix-SL without its mixup",
        traffic="2|D|S + 2C(|w_lower| + |w_aux|)",
    ),
    "locfedmix": Preset(
        protocol=Protocol(
            learner=SplitWithLocalLoss(), barrier=All(), head=Head(mix=Mixup()), merge=Average(parts=("lower", "aux"))
        ),
        source="Oh et al. 2022, LocFedMix-SL: localize, federate, and mix for improved scalability of split learning",
        traffic="2|D|S + 2C(|w_lower| + |w_aux|)",
    ),
    "cse_fsl": Preset(
        protocol=Protocol(
            learner=LocalLoss(send_every=5),
            barrier=InTurn(order="fixed", unit="batch"),
            merge=Average(parts=("lower", "aux")),
        ),
        source="Mu & Shen 2023, Communication and storage efficient federated split learning (CSE-FSL), "
        "arXiv:2302.05599",
        traffic="|D|S/h + 2C(|w_lower| + |w_aux|); floor(K/h) of a wave's K batches up, ceil(K/h) with learner.partial "
        "= 'send'",
    ),
    "fsl_sage": Preset(
        protocol=Protocol(
            gate=Always(record=1000, align_every=10),
            learner=LocalLoss(send_every=5, upload="first", train_aux=False, aux=Classifier(form="head", blocks=2)),
            barrier=InTurn(order="fixed", unit="batch"),
            merge=Average(parts=("lower",)),
        ),
        source="Nair et al. 2025, FSL-SAGE: federated split learning via smashed activation gradient estimation, "
        "arXiv:2505.23182",
        traffic="|D|S/q (ceil(K/q) of a wave's K batches up) + 2C|w_lower|; C|w_aux| down in the first round and every "
        "l-th",
    ),
    "fedavg": Preset(
        protocol=Protocol(learner=Local(), merge=Average(parts=("lower", "head"))),
        source="McMahan et al. 2017, Communication-efficient learning of deep networks from decentralized data",
        traffic="2C|w|",
    ),
}
