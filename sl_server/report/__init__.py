"""A run directory on one page: read back (past), ordered in time (timeline), drawn (plots, svg), written (page)."""
