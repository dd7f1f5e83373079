"""The 200 questions, their checkers, and the comparison with a reference."""
