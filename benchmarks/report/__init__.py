"""Statistics of rounds, the terminal's tables, and a plot."""
