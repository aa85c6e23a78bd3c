"""What a network looks like from its weights, and a trigger from its images."""
