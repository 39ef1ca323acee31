"""Asking rewards: in training beside the main work, of picture files, and for other machines."""
