"""Right and wrong answers to the exercises of lesson 04, for test_check.py."""

RIGHT: dict = {}

WRONG: dict = {}
