"""What is measured, and the measured results with the commands that made them."""

import os

from sl_client.proxy import VARIABLES

for _name in (
    *VARIABLES,
    "HTTP_PROXY",
):  # all processes of a benchmark are on this machine: no proxy is measured with them
    os.environ.pop(_name, None)
os.environ["CUDA_VISIBLE_DEVICES"] = (
    ""  # of what is started too: the bare streams that all is compared with compute on the CPU
)
