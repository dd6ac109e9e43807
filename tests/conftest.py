"""Shared by all tests: one torch thread, as every participant of a run has by default."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # tests import `world`
torch.set_num_threads(1)
