"""cocoon: a daemonless microVM engine. The engine is a library; the command line (`cocoon.cli`) is a thin skin."""

__version__ = "0.1.0"
