"""Carbon intensity of the grid: one port, five sources, and a monitor that keeps the newest answer with its label."""
