"""The simulation in which the clients' lower segments compute as one, for experiments with hundreds of clients.

Bytes and facts are those of the plain simulation; weights differ in their last bits at most.
"""
