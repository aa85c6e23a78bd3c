"""Right and wrong answers to the exercises of lesson 06, for test_check.py."""

RIGHT: dict = {}

WRONG: dict = {}
