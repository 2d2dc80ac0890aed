"""What is hidden from the model; one file a task."""
