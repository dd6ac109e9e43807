"""What is measured, and the measured results with the commands that made them."""

import os

from sl_client.transport.proxy import PROXY_VARIABLES

# All processes of a benchmark are on this machine: no proxy is measured with them.
for _name in (*PROXY_VARIABLES, "HTTP_PROXY"):
    os.environ.pop(_name, None)
# Of what is started too: the bare streams that all is compared with compute on the CPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
