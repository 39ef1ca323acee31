"""Drawing with few steps, scoring what was drawn, showing it, and guarding against too much of it."""
