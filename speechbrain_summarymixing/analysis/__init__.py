"""What the mixers cost, measured."""
