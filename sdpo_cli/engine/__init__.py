"""The engine: one epoch is a straight line of six calls, each handing a frozen record to the next."""
