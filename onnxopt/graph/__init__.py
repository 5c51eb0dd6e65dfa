"""The model in memory: what passes edit, how it is read and written, and what can be said of it without running it."""
