"""The ``ferfacenet`` command."""
