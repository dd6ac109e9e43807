"""A run's configuration: one TOML file becomes one frozen object, or an error that names the key.

Pure, and the run's one source of truth: the server sends it to every client.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    known_data="KNOWN_DATA KnownData",
    overrides="split_overrides",
    presets="PRESETS",
    run_config="RunConfig",
    sections="MAX_CLIENTS WaveConfig check_device",
    server_section="Budget Guard",
)
