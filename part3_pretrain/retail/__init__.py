"""The retail world, and the rubric that rates replies."""
