"""How long an epoch takes, and what of the hardware it uses."""
