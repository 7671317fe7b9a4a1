"""What Coconut and LatentMAS share: fields, and the step."""
