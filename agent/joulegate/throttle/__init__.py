"""What the hardware, the budgets and the grid can take next: pure, and given the time."""
