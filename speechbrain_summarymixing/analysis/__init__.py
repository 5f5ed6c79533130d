"""What systems and their mixers cost and how well they learn, measured."""
