"""Time and memory of parts beside each other: how to measure, and one file per subject."""
