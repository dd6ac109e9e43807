"""Counts and times of a run, and their export to Prometheus.

Bytes are counted at the wire, never estimated; metrics are read when scraped.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    health="Health OVER",
    ledger="Direction Ledger WireTally",
    metrics="Metrics",
    names="PHASES REASONS",
    run_series="LedgerCollector",
    scrapes="Scrapes",
)
