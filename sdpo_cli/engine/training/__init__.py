"""A training run from its first epoch to its last, over stops, resumes and processes."""
