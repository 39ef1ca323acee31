"""Files of a run, of a comparison and beside pictures: whole or not at all, locked, with a memory of what changed."""
