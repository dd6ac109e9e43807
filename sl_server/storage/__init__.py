"""Read and write a run's directory: the files that grow while it trains, checkpoints, weights, and the summary.

Every file is complete whenever it is read; nothing here decides what a run does.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    checkpoint="Checkpoints",
    eventlog="EVENT_LOG EventLog Recorded opened_log",
    export="export_run",
    run_directory="EMPTY_FILES RunDirectory shorter",
    run_selection="Stage held_run new_directory outcome read_config",
    spill="DiskSpill SEGMENT",
    table="Board",
    tensorboard="open_board",
    trained="TrainedRun config_of read_trained_run",
)
