"""Gauges of a training server that are read when a Prometheus asks for them, from its thread."""

from __future__ import annotations

import torch

from sl_server.core.coordinator import Coordinator
from sl_server.telemetry.metrics import Metrics
from sl_server.transport.inbox import Inbox


def watch_load(metrics: Metrics, inbox: Inbox, coordinator: Coordinator) -> None:
    """Expose what waits in the inbox and in the coordinator, and the memory of GPUs."""
    metrics.watch(
        {
            "sl_queue_events": inbox.size,
            "sl_queue_bytes": lambda: inbox.backlog,
            "sl_waiting_batches": lambda: coordinator.load().waiting_batches,
            "sl_recorded_memory_bytes": lambda: coordinator.load().recorded_memory_bytes,
            "sl_recorded_disk_bytes": lambda: coordinator.load().recorded_disk_bytes,
            "sl_device_memory_bytes": _device_memory,
        }
    )


def _device_memory() -> int:
    """Return the bytes of torch's tensors on all GPUs. CUDA is not started in a process that does not use it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    return sum(torch.cuda.memory_allocated(device) for device in range(torch.cuda.device_count()))
