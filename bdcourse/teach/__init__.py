"""What a course is taught with: so far, how submissions are run and marked."""
