"""The files of a run directory and what each of them holds: one table, for the reference page and for tests."""

from __future__ import annotations

from collections.abc import Mapping

FILES: Mapping[str, str] = {
    "run.json": (
        "Schema of the directory, and the versions of cutlayer and torch that began it. `--resume` refuses a run "
        "of another schema before a byte is touched."
    ),
    "config.json": "The run's configuration with every key resolved.",
    "metrics.jsonl": (
        "One JSON line for each event as it happens: `joined`, `left`, `late`, `away`, `back`, `done`, "
        "`wave_begun`, `round` (loss, bytes so far by direction and kind, mean seconds of a step by phase), "
        "`evaluation`, `went_back`, `warning`, `run_ended`."
    ),
    "metrics.csv": (
        "One row for each round, written when its evaluation is over: `round`, `loss`, `accuracy` with `_min` and"
        " `_max` over clients, `eval_loss`, `samples`, `clients`, `seconds` since the first wave began; bytes so "
        "far as `up_KIND_bytes`, `down_KIND_bytes`, `up_payload_bytes` and `down_payload_bytes` (as float32); of "
        "this round `timed_steps` and `PHASE_seconds`, the mean of a step. A simulation has no phases."
    ),
    "digests.log": (
        "One line for each batch that was trained: client, round and wave (from 1), step (from 0), CRC-32 of the "
        "activation. After a restart it is cut back to the checkpoint, as the other text files are."
    ),
    "weights.json": (
        "The set of weight files of the last evaluation: after how many rounds, and size and SHA-256 of each file."
    ),
    "lower.safetensors": (
        "The clients' shared lower segment; where clients keep their own (`merge = keep`) there is none."
    ),
    "aux.safetensors": "The auxiliary network, where the run has one that all clients share.",
    "head.safetensors": "The server's head.",
    "head-SHARD.safetensors": "The head of one client, where every client has its own; SHARD counts from 0.",
    "inputs.json": (
        "What the clients trained on: type, range, mean and standard deviation of the inputs, and the digest of "
        "the set that was dealt. `sl-client predict` compares files with it."
    ),
    "summary.json": (
        'Result, bytes and the digest of the weights; written last, when everything else is durable. `"failed": '
        "true` if the run failed."
    ),
    "checkpoint-NUMBER.tree": (
        "The newest two checkpoints, tensors and JSON with a checksum; `--resume` goes on from the newest whole one."
    ),
    "events.log": (
        "With `--record`: every event of the run with its activations, and digests of what came of it, for `sl-"
        "server replay`."
    ),
    "report.html": "What `sl-server report` wrote.",
    "model.safetensors": "What `sl-server export` wrote: the unsplit network.",
    "events.out.tfevents.*": "With `--tensorboard`: the columns of `metrics.csv`.",
    ".lock, .lock.holder": "The process that writes here now. The lock ends with its process.",
}
