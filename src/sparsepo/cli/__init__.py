"""The ``sparsepo`` command: one file a subcommand, nothing heavy imported before a subcommand runs."""
