"""A run's configuration: one TOML file becomes one frozen object, or an error that names the key.

Pure, and the run's one source of truth: the server hands it to every client.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    overrides="split_overrides",
    presets="PRESETS",
    run_config="Budget Guard KNOWN_DATA KnownData MAX_CLIENTS RunConfig WaveConfig check_device",
)
