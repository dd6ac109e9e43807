"""The simulation that computes the clients' lower segments as one, for experiments with hundreds of clients.

Bytes and facts equal those of the plain simulation; weights differ in their last bits at most.
"""
