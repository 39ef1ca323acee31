"""Objectives or settings side by side, over seeds, at equal cost."""
