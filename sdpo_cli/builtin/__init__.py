"""Plug-ins that happen to be shipped: found by entry points and bound to the same contract as any other."""
