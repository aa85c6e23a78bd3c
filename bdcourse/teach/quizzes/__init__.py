"""The questions at the end of each lesson: five of them in a tuple `QUESTIONS`."""
