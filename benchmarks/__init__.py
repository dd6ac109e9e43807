"""What is measured, and the measured results with the commands that made them."""
