"""The algorithm: rollouts, credit and policy updates, with what they draw, decode and remember."""
