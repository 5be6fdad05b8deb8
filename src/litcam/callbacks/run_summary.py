"""RunSummary: what a run reached."""

import lightning as L


class RunSummary(L.Callback):
    """x"""
