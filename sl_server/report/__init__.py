"""What a run directory says, on one page: read back (past), laid out in time (timeline), drawn (plots, svg), written (page)."""
