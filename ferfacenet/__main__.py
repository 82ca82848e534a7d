"""``python -m ferfacenet`` is the ``ferfacenet`` command."""

import sys

from ferfacenet.command.cli import main

sys.exit(main())
