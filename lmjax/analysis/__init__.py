"""Analysis: curves and maps of what a run did."""
