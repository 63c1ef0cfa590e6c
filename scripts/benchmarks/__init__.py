"""Time and memory of parts side by side: how to measure, and one file per subject."""
