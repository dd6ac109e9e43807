"""The smallest run that real processes make in these tests: two clients, two rounds, three batches each."""

SMALL = """
[run]
name = "small"
rounds = 2
clients = 2
[model]
name = "mlp"
args = { hidden = [16] }
[data]
batch_size = 32
[protocol]
preset = "splitfed_v2"
[client]
wave = { steps = 3 }
"""
