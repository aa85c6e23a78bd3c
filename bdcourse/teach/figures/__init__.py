"""The figures of each lesson, description beside drawing; one function a figure."""
